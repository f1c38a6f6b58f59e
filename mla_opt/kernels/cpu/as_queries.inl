// Rows of a head's matrix as queries of one head: products with them are then scores. Included by a tier
// before heads_amx.inl or heads_bf16.inl.

Problem as_queries(const Matrix& m, const float* rows, int32_t type_of_rows) {
  Problem p{};
  p.type = MLA_OPT_FLOAT32;
  p.cache_type = type_of_rows;
  p.batch = p.heads = 1;
  p.query_len = m.rows;
  p.kv_lora_rank = m.columns;
  p.scale = 1.0;
  p.query = rows;
  return p;
}

// Numbers of the matrix as the tier packs queries.
bool pack_as_queries(const HeadProducts& unpacking, const Matrix& m, int32_t type_of_rows,
                     float* packed, const HeadScratch& scratch) {
  auto* rows = reinterpret_cast<float*>(scratch.packed.reserve(
      static_cast<size_t>(greatest(m.rows * m.columns, LANES)) * sizeof(float)));
  if (!rows || !unpacking.unpack(m, rows, scratch.rows)) return false;
  if (m.rows > 0) pack_query(as_queries(m, rows, type_of_rows), Tile{0, 0, m.rows}, packed);
  return true;
}

int64_t floats_of_queries(const Matrix& m, int32_t type_of_rows) {
  const size_t bytes = query_bytes(as_queries(m, nullptr, type_of_rows), padded(m.rows));
  return static_cast<int64_t>(bytes / sizeof(float));
}
