// Scores and weighted sums of bfloat16 rows by vdpbf16ps, which multiplies pairs and adds them in
// float32. Included by the tier avx512bf16, after rows_bf16.inl. Rows are broadcast as they are, a pair
// at a time.

constexpr int kScoreKeysOne = 16;   // keys of a score tile with one vector of query rows
constexpr int kScoreKeysTwo = 12;   // and with two
constexpr int kValueRows = 6;
constexpr int kValueVectors = kStripVectors;

inline Pairs broadcast_pair(const void* from) {
  uint32_t pair;
  __builtin_memcpy(&pair, from, sizeof pair);
  return _mm512_set1_epi32(static_cast<int>(pair));
}

inline Vector multiply_pairs(Vector sum, Pairs a, Pairs b) {
  return reinterpret_cast<Vector>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a),
                       reinterpret_cast<__m512bh>(b)));
}

// ---- scores -------------------------------------------------------------------------------------

template <int KEYS, int VECTORS, int STRIDE>
inline __attribute__((always_inline)) void multiply(Vector (&tile)[KEYS][VECTORS],
                                                    const BFloat16* rows, ptrdiff_t stride,
                                                    const uint32_t* query, int64_t width) {
  const ptrdiff_t step = STRIDE ? STRIDE : stride;
  for (int64_t d = 0; d < width / 2; ++d) {
    Pairs q[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) q[v] = load_pairs(query + (d * VECTORS + v) * LANES);
#pragma GCC unroll 32
    for (int k = 0; k < KEYS; ++k) {
      const Pairs key = broadcast_pair(rows + k * step + 2 * d);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) tile[k][v] = multiply_pairs(tile[k][v], q[v], key);
    }
  }
}

template <int KEYS, int VECTORS, int STRIDE>
void score_tile(const Problem& p, const Block& block, int key, const uint32_t* query, float* scores,
                int64_t score_stride) {
  Vector tile[KEYS][VECTORS] = {};
  multiply<KEYS, VECTORS, STRIDE>(tile, block.front + key * block.front_stride, block.front_stride,
                                  query, scored_front(p));
  if (back_width(p))
    multiply<KEYS, VECTORS, STRIDE>(tile, block.back + key * block.back_stride, block.back_stride,
                                    query + scored_front(p) / 2 * VECTORS * LANES, back_width(p));
  // Here and not in the query, which would be rounded once more.
  const Vector scale = broadcast(static_cast<float>(p.scale));
#pragma GCC unroll 32
  for (int k = 0; k < KEYS; ++k)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      store(scores + (key + k) * score_stride + v * LANES, tile[k][v] * scale);
}

template <int KEYS, int VECTORS, int STRIDE>
void score_keys(const Problem& p, const Block& block, const uint32_t* query, float* scores,
                int64_t score_stride) {
  int key = 0;
  for (; key + KEYS <= block.keys; key += KEYS)
    score_tile<KEYS, VECTORS, STRIDE>(p, block, key, query, scores, score_stride);
  for (; key + 4 <= block.keys; key += 4)
    score_tile<4, VECTORS, STRIDE>(p, block, key, query, scores, score_stride);
  for (; key < block.keys; ++key)
    score_tile<1, VECTORS, STRIDE>(p, block, key, query, scores, score_stride);
}

template <int STRIDE>
void score_block(const Problem& p, const Block& block, const uint32_t* query, int64_t vectors,
                 float* scores, int64_t stride) {
  for (int64_t at = 0; at < vectors;) {
    const int group = group_vectors(at, vectors);
    float* to = scores + at * LANES;
    if (group == 2)
      score_keys<kScoreKeysTwo, 2, STRIDE>(p, block, query, to, stride);
    else
      score_keys<kScoreKeysOne, 1, STRIDE>(p, block, query, to, stride);
    query += group * LANES * row_width(p) / 2;
    at += group;
  }
}

void score(const Problem& p, const Block& block, const void* packed, int64_t vectors,
           float* scores, int64_t stride, float* /*buffer*/, Ahead& /*ahead*/) {
  const auto* query = static_cast<const uint32_t*>(packed);
  const bool joined = block.front_stride == block.back_stride || back_width(p) == 0 || !p.scores_c_kv;
  const ptrdiff_t step = p.scores_c_kv ? block.front_stride : block.back_stride;
  if (joined && step == 576) return score_block<576>(p, block, query, vectors, scores, stride);
  if (joined && step == 512) return score_block<512>(p, block, query, vectors, scores, stride);
  if (joined && step == 288) return score_block<288>(p, block, query, vectors, scores, stride);
  if (joined && step == 192) return score_block<192>(p, block, query, vectors, scores, stride);
  return score_block<0>(p, block, query, vectors, scores, stride);
}

// ---- weighted sums of the rows ------------------------------------------------------------------

// Probabilities of neighbouring keys as pairs [keys / 2, stride], in the place of the first ones.
void pair_probabilities(float* probabilities, int64_t stride, int keys) {
  auto* pairs = reinterpret_cast<uint32_t*>(probabilities);
  for (int key = 0; key < keys; key += 2)
    for (int64_t at = 0; at < stride; at += LANES) {
      const Vector first = load(probabilities + key * stride + at);
      const Vector second =
          key + 1 < keys ? load(probabilities + (key + 1) * stride + at) : Vector{};
      const auto low = _mm512_cvtepu16_epi32(
          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(first))));
      const auto high = _mm512_cvtepu16_epi32(
          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(second))));
      _mm512_storeu_si512(pairs + key / 2 * stride + at,
                          _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
}

template <int ROWS, int VECTORS>
void value_tile(const uint32_t* values, int count, const uint32_t* probabilities,
                int64_t probability_stride, const float* keep, float* output,
                int64_t output_stride, Ahead& ahead) {
  Vector tile[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      tile[r][v] = load(output + r * output_stride + v * LANES) * keep[r];
  for (int pair = 0; pair < count; ++pair) {
    ahead.fetch();
    Pairs value[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) value[v] = load_pairs(values + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Pairs probability = broadcast_pair(probabilities + r);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v)
        tile[r][v] = multiply_pairs(tile[r][v], value[v], probability);
    }
    values += VECTORS * LANES;
    probabilities += probability_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(output + r * output_stride + v * LANES, tile[r][v]);
}

template <int VECTORS>
void value_strip(const uint32_t* values, int count, const uint32_t* probabilities,
                 int64_t probability_stride, const float* keep, int64_t rows, float* output,
                 int64_t output_stride, Ahead& ahead) {
  int64_t row = 0;
  const auto tile = [&](auto size) {
    for (; row + size.value <= rows; row += size.value)
      value_tile<size.value, VECTORS>(values, count, probabilities + row, probability_stride,
                                      keep + row, output + row * output_stride, output_stride, ahead);
  };
  tile(Size<kValueRows>{});
  tile(Size<4>{});
  tile(Size<2>{});
  tile(Size<1>{});
}

void add_values(const Problem& p, const Block& block, float* probabilities,
                int64_t probability_stride, const float* keep, int64_t rows, float* output,
                float* buffer, Ahead& ahead) {
  constexpr int64_t kStrip = kValueVectors * LANES;
  const int64_t rank = p.kv_lora_rank;
  const int count = (block.keys + 1) / 2;
  auto* values = reinterpret_cast<uint32_t*>(buffer);
  pair_probabilities(probabilities, probability_stride, block.keys);
  const auto* pairs = reinterpret_cast<const uint32_t*>(probabilities);
  for (int64_t column = 0; column < rank; column += kStrip) {
    const int64_t wide = least(kStrip, rank - column);
    interleave_strip(block, column, wide, count, values, ahead);
    const auto add = wide == kStrip ? value_strip<kValueVectors> : value_strip<kValueVectors / 2>;
    add(values, count, pairs, probability_stride, keep, rows, output + column, rank, ahead);
  }
}
