// Products of bfloat16 rows with the matrix of a head: scores (products_bf16.inl), with numbers of the
// matrix in the place of queries. Included by the tier avx512bf16, after flash.inl and as_queries.inl.

bool fits_heads(int64_t key, int64_t value, int64_t rank) {
  return key % 2 == 0 && value % kPairColumns == 0 && rank % kPairColumns == 0;
}

int64_t bfloat16_floats(const Matrix& m) { return floats_of_queries(m, MLA_OPT_BFLOAT16); }

bool pack_bfloat16(const Matrix& m, float* packed, const HeadScratch& scratch) {
  return pack_as_queries(avx512::head_products, m, MLA_OPT_BFLOAT16, packed, scratch);
}

void multiply_bfloat16(const Matrix& m, const float* packed, const BFloat16Rows& a, float* out,
                       int64_t stride) {
  const Problem p = as_queries(m, nullptr, MLA_OPT_BFLOAT16);
  const Block block{a.at, a.at, a.stride, a.stride, p.kv_lora_rank, 0, static_cast<int>(a.count)};
  Ahead nothing;
  score(p, block, packed, padded(m.rows) / LANES, out, stride, nullptr, nothing);
}

void round_to_bfloat16(const float* from, int64_t count, BFloat16* to) {
  int64_t at = 0;
  for (; at + LANES <= count; at += LANES) StoreBFloat16{to}(at, load(from + at));
  for (; at < count; ++at) from_float(from[at], to[at]);
}

constexpr BFloat16Products kBFloat16Products = {fits_heads, bfloat16_floats, pack_bfloat16,
                                                multiply_bfloat16, round_to_bfloat16};
