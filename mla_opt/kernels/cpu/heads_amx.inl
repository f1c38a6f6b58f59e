// Products of many rows with the matrix of a head on the tiles of AMX: those of scores, with numbers of
// the matrix in the place of queries. Included by the tier amx_parts, after flash.inl and
// as_queries.inl.

const HeadProducts& below() { return avx512::head_products; }

bool fits_tiles(const Matrix& m) { return m.columns % kTileDims == 0; }

int64_t padded_columns(int64_t columns) { return below().padded_columns(columns); }

int64_t padded_rows(int64_t rows) { return (rows + kBlockKeys - 1) / kBlockKeys * kBlockKeys; }

int64_t packed_floats(const Matrix& m) {
  if (!fits_tiles(m)) return below().packed_floats(m);
  return floats_of_queries(m, MLA_OPT_FLOAT32);
}

bool pack(const Matrix& m, float* packed, const HeadScratch& scratch) {
  if (!fits_tiles(m)) return below().pack(m, packed, scratch);
  return pack_as_queries(below(), m, MLA_OPT_FLOAT32, packed, scratch);
}

bool multiply_on_tiles(const Matrix& m, const float* packed, const FloatRows& a, float* out,
                       int64_t stride, Scratch& scratch) {
  if (!fits_tiles(m)) return below().multiply(m, packed, a, out, stride, scratch);
  auto* parts =
      reinterpret_cast<float*>(scratch.reserve(static_cast<size_t>(kBufferWords) * sizeof(float)));
  if (!parts) return false;
  const Problem p = as_queries(m, nullptr, MLA_OPT_FLOAT32);
  configure(kTileRows);
  for (int64_t first = 0; first < a.count; first += kBlockKeys) {
    const auto rows = static_cast<int>(least(kBlockKeys, a.count - first));
    const auto* from = reinterpret_cast<const char*>(a.at + first * a.stride);
    const Block block{from, from, a.stride, a.stride, first, rows, false};
    Ahead nothing;
    score(p, block, packed, padded(m.rows) / LANES, out + first * stride, stride, parts, nothing);
  }
  _tile_release();
  return true;
}

bool sum_rows(const Matrix& m, const FloatRows& a, float* out, int64_t stride,
              const HeadScratch& scratch) {
  return below().sum_rows(m, a, out, stride, scratch);
}

bool dot_rows(const Matrix& m, const FloatRows& a, float* out, int64_t stride,
              const HeadScratch& scratch) {
  return below().dot_rows(m, a, out, stride, scratch);
}

bool unpack(const Matrix& m, float* rows, Scratch& scratch) {
  return below().unpack(m, rows, scratch);
}

constexpr HeadProducts kHeadProducts = {padded_columns, padded_rows,   sum_rows, dot_rows,
                                        packed_floats,  pack,          multiply_on_tiles, unpack};
