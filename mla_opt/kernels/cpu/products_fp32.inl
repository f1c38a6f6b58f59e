// Scores and weighted sums in float32, for rows of every type. Included by a tier that defines the
// shape of the register tiles:
//   SCORE_VECTORS    vectors of query rows a score tile has at most
//   SCORE_KEYS_WIDE  keys it has when it has that many vectors
//   SCORE_KEYS_ONE   keys it has with one vector
//   VALUE_VECTORS    vectors of columns a value tile has at most
//   VALUE_ROWS       query rows it has

constexpr int kBlockKeys = 96;
inline int64_t block_keys(int64_t /*rows*/) { return kBlockKeys; }
// Dims that are scored for each line that is fetched ahead, by each vector of query rows: with one
// vector, half of a block comes during the scores and half during the weighted sums.
constexpr int kDimsPerLine = 2;
// Rows from memory come a sixth faster when they are asked for in both caches (Intel Xeon, family 6,
// model 167), though nobody needs them in the first one yet.
constexpr int kFetchLevel = 3;

// ---- the query, packed
// Vectors in the group of query rows that starts at vector `at` of `count`.
inline int group_vectors(int64_t at, int64_t count) {
  return count - at < SCORE_VECTORS ? 1 : SCORE_VECTORS;
}

size_t query_bytes(const Problem& p, int64_t rows) {
  return static_cast<size_t>(padded(rows) * row_width(p)) * sizeof(float);
}

template <class T>
void pack_rows(const Problem& p, const Tile& tile, float* packed) {
  const int64_t width = row_width(p), vectors = padded(tile.count) / LANES;
  const auto scale = static_cast<float>(p.scale);
  for (int64_t at = 0; at < vectors;) {
    const int group = group_vectors(at, vectors);
    const int64_t lanes = group * LANES;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t row = at * LANES + lane;
      float* to = packed + lane;
      if (row < tile.count) {
        const T* from = static_cast<const T*>(p.query) +
                        query_offset(p, tile.sequence, tile.first + row, width);
        for (int64_t d = 0; d < width; ++d) to[d * lanes] = scale * to_float(from[d]);
      } else {
        for (int64_t d = 0; d < width; ++d) to[d * lanes] = 0.0f;
      }
    }
    packed += lanes * width;
    at += group;
  }
}

void pack_query(const Problem& p, const Tile& tile, void* packed) {
  auto* to = static_cast<float*>(packed);
  if (p.type == MLA_OPT_FLOAT32) return pack_rows<float>(p, tile, to);
  if (p.type == MLA_OPT_FLOAT16) return pack_rows<Half>(p, tile, to);
  return pack_rows<BFloat16>(p, tile, to);
}

// ---- latent rows
// Keys as the register tiles read them. What there is of c_kv in front fills vectors.
struct Block {
  const float* front;
  const float* back;
  ptrdiff_t front_stride, back_stride;
  int64_t front_width, back_width;
  int64_t first;
  int keys;
};

// Rows made of those of a segment: c_kv up to full vectors, and k_pe behind it.
Block made_block(const Problem& p, const float* rows, int64_t first, int keys) {
  const int64_t rank = p.kv_lora_rank, stride = padded(rank) + p.rope_dim;
  return {rows, rows + padded(rank), stride, stride, rank, p.rope_dim, first, keys};
}

template <class T>
void widen(const T* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

// A row whose front and back these are.
template <class T>
void widen_row(const Problem& p, const T* front, const T* back, float* row) {
  const int64_t rank = p.kv_lora_rank, in_front = rank_in_front(p);
  float* rope = row + padded(rank);
  widen(front, row, in_front);
  widen(back, row + in_front, rank - in_front);
  for (float* at = row + rank; at < rope; ++at) *at = 0.0f;
  // Of k_pe there may be a part in front.
  const int64_t before = front_width(p) - in_front;
  widen(front + in_front, rope, before);
  widen(back + (rank - in_front), rope + before, p.rope_dim - before);
}

// Rows of another type, or not of full vectors, as floats with zeros behind c_kv.
template <class T>
Block widened(const Problem& p, const Segment& rows, int64_t first, int keys, float* to) {
  const int64_t stride = padded(p.kv_lora_rank) + p.rope_dim;
  const auto* front = reinterpret_cast<const T*>(rows.front) + (first - rows.first) * rows.front_stride;
  const auto* back = reinterpret_cast<const T*>(rows.back) + (first - rows.first) * rows.back_stride;
  for (int key = 0; key < keys; ++key)
    widen_row(p, front + key * rows.front_stride, back + key * rows.back_stride, to + key * stride);
  return made_block(p, to, first, keys);
}

// The same of quantized rows.
Block dequantized(const Problem& p, const Segment& rows, int64_t first, int keys, float* to) {
  const int64_t rank = p.kv_lora_rank, stride = padded(rank) + p.rope_dim;
  const auto* k_pe =
      reinterpret_cast<const BFloat16*>(rows.back) + (first - rows.first) * rows.back_stride;
  const bool is_int8 = rows.type == MLA_OPT_INT8;
  for (int key = 0; key < keys; ++key) {
    float* row = to + key * stride;
    const uint8_t* codes = codes_of(rows, first + key);
    const BFloat16* scales = scales_of(rows, first + key);
    is_int8 ? dequantize<Int8Codes>(codes, scales, rank, StoreFloats{row})
            : dequantize<E4M3Codes>(codes, scales, rank, StoreFloats{row});
    for (int64_t d = rank; d < padded(rank); ++d) row[d] = 0.0f;
    if (p.rope_dim) widen(k_pe + key * rows.back_stride, row + padded(rank), p.rope_dim);
  }
  return made_block(p, to, first, keys);
}

int64_t block_floats(const Problem& p, int64_t /*rows*/) {
  return kBlockKeys * (padded(p.kv_lora_rank) + p.rope_dim);
}

inline bool read_in_place(const Problem& p, const Segment& rows) {
  return rows.type == MLA_OPT_FLOAT32 && p.kv_lora_rank % LANES == 0 &&
         rank_in_front(p) % LANES == 0;
}

Block block_of(const Problem& p, const Segment& rows, int64_t first, int keys, const Next&,
               float* buffer) {
  if (read_in_place(p, rows)) {
    const int64_t row = first - rows.first;
    return {reinterpret_cast<const float*>(rows.front) + row * rows.front_stride,
            reinterpret_cast<const float*>(rows.back) + row * rows.back_stride,
            rows.front_stride, rows.back_stride, front_width(p), back_width(p), first, keys};
  }
  if (is_quantized(rows.type)) return dequantized(p, rows, first, keys, buffer);
  if (rows.type == MLA_OPT_FLOAT32) return widened<float>(p, rows, first, keys, buffer);
  if (rows.type == MLA_OPT_FLOAT16) return widened<Half>(p, rows, first, keys, buffer);
  return widened<BFloat16>(p, rows, first, keys, buffer);
}

// ---- scores
// Adds the products over `width` dims to a tile of KEYS keys and VECTORS vectors of query rows.
template <int KEYS, int VECTORS, int STRIDE>
inline __attribute__((always_inline)) void multiply(Vector (&tile)[KEYS][VECTORS], const float* rows,
                                                    ptrdiff_t stride, const float* query,
                                                    int64_t width, Ahead& ahead) {
  // A stride known to the compiler becomes part of the address, and saves a register per key.
  const ptrdiff_t step = STRIDE ? STRIDE : stride;
  const auto add = [&](int64_t d) __attribute__((always_inline)) {
    Vector q[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) q[v] = load(query + (d * VECTORS + v) * LANES);
#pragma GCC unroll 32
    for (int k = 0; k < KEYS; ++k) {
      const Vector key = broadcast(rows[k * step + d]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) tile[k][v] += key * q[v];
    }
  };
  constexpr int dims = kDimsPerLine * VECTORS;
  int64_t d = 0;
  for (; d + dims <= width; d += dims) {
    ahead.fetch<kFetchLevel>();
#pragma GCC unroll 8
    for (int i = 0; i < dims; ++i) add(d + i);
  }
  for (; d < width; ++d) add(d);
}

template <int KEYS, int VECTORS, int STRIDE>
void score_tile(const Problem& p, const Block& block, int key, const float* query, float* scores,
                int64_t score_stride, Ahead& ahead) {
  Vector tile[KEYS][VECTORS] = {};
  const int64_t front = p.scores_c_kv ? block.front_width : 0;
  multiply<KEYS, VECTORS, STRIDE>(tile, block.front + key * block.front_stride, block.front_stride,
                                  query, front, ahead);
  if (block.back_width)
    multiply<KEYS, VECTORS, STRIDE>(tile, block.back + key * block.back_stride, block.back_stride,
                                    query + front * VECTORS * LANES, block.back_width, ahead);
#pragma GCC unroll 32
  for (int k = 0; k < KEYS; ++k)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(scores + (key + k) * score_stride + v * LANES, tile[k][v]);
}

template <int KEYS, int VECTORS, int STRIDE>
void score_keys(const Problem& p, const Block& block, const float* query, float* scores,
                int64_t score_stride, Ahead& ahead) {
  int key = 0;
  for (; key + KEYS <= block.keys; key += KEYS)
    score_tile<KEYS, VECTORS, STRIDE>(p, block, key, query, scores, score_stride, ahead);
  for (; key + 4 <= block.keys; key += 4)
    score_tile<4, VECTORS, STRIDE>(p, block, key, query, scores, score_stride, ahead);
  for (; key < block.keys; ++key)
    score_tile<1, VECTORS, STRIDE>(p, block, key, query, scores, score_stride, ahead);
}

template <int STRIDE>
void score_block(const Problem& p, const Block& block, const float* query, int64_t vectors,
                 float* scores, int64_t stride, Ahead& ahead) {
  for (int64_t at = 0; at < vectors;) {
    const int group = group_vectors(at, vectors);
    float* to = scores + at * LANES;
    if (group == SCORE_VECTORS)
      score_keys<SCORE_KEYS_WIDE, SCORE_VECTORS, STRIDE>(p, block, query, to, stride, ahead);
    else
      score_keys<SCORE_KEYS_ONE, 1, STRIDE>(p, block, query, to, stride, ahead);
    query += group * LANES * row_width(p);
    at += group;
  }
}

// Rows of the widths in use get addresses of their own.
void score(const Problem& p, const Block& block, const void* packed, int64_t vectors,
           float* scores, int64_t stride, float* /*buffer*/, Ahead& ahead) {
  const auto* query = static_cast<const float*>(packed);
  const bool joined = block.front_stride == block.back_stride || block.back_width == 0 || !p.scores_c_kv;
  const ptrdiff_t step = p.scores_c_kv ? block.front_stride : block.back_stride;
  if (joined && step == 576) return score_block<576>(p, block, query, vectors, scores, stride, ahead);
  if (joined && step == 512) return score_block<512>(p, block, query, vectors, scores, stride, ahead);
  if (joined && step == 288) return score_block<288>(p, block, query, vectors, scores, stride, ahead);
  if (joined && step == 192) return score_block<192>(p, block, query, vectors, scores, stride, ahead);
  return score_block<0>(p, block, query, vectors, scores, stride, ahead);
}

// ---- weighted sums of the rows
// Columns of c_kv as they lie: of all keys of a block.
struct Columns {
  const float* at;
  ptrdiff_t stride;
  int keys;
};

template <int ROWS, int VECTORS>
void value_tile(const Columns& columns, const float* probabilities, int64_t probability_stride,
                const float* keep, float* output, int64_t output_stride, Ahead& ahead) {
  Vector tile[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      tile[r][v] = load(output + r * output_stride + v * LANES) * keep[r];
  const float* values = columns.at;
  for (int key = 0; key < columns.keys; ++key) {
    ahead.fetch<kFetchLevel>();
    Vector value[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) value[v] = load(values + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vector probability = broadcast(probabilities[r]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) tile[r][v] += probability * value[v];
    }
    values += columns.stride;
    probabilities += probability_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(output + r * output_stride + v * LANES, tile[r][v]);
}

template <int VECTORS>
void value_columns(const Columns& columns, const float* probabilities, int64_t probability_stride,
                   const float* keep, int64_t rows, float* output, int64_t output_stride,
                   Ahead& ahead) {
  int64_t row = 0;
  const auto tile = [&](auto size) {
    for (; row + size.value <= rows; row += size.value)
      value_tile<size.value, VECTORS>(columns, probabilities + row, probability_stride, keep + row,
                                      output + row * output_stride, output_stride, ahead);
  };
  tile(Size<VALUE_ROWS>{});
  if (VALUE_ROWS > 4) tile(Size<4>{});
  if (VALUE_ROWS > 2) tile(Size<2>{});
  tile(Size<1>{});
}

// Columns outermost: a strip of the block then stays in the first-level cache for all rows.
void add_values(const Problem& p, const Block& block, const float* probabilities,
                int64_t probability_stride, const float* keep, int64_t rows, float* output,
                float* /*buffer*/, Ahead& ahead) {
  const int64_t stride = padded(p.kv_lora_rank);
  const int64_t in_front = block.front_width < p.kv_lora_rank ? block.front_width : stride;
  const auto add = [&](const float* at, ptrdiff_t row, int64_t count, float* to) {
    constexpr int64_t kWide = VALUE_VECTORS * LANES;
    int64_t column = 0;
    for (; column + kWide <= count; column += kWide)
      value_columns<VALUE_VECTORS>({at + column, row, block.keys}, probabilities,
                                   probability_stride, keep, rows, to + column, stride, ahead);
    for (; column < count; column += LANES)
      value_columns<1>({at + column, row, block.keys}, probabilities, probability_stride, keep, rows,
                       to + column, stride, ahead);
  };
  add(block.front, block.front_stride, in_front, output);
  add(block.back, block.back_stride, stride - in_front, output + in_front);
}

// Columns are where they belong.
void settle(const Problem&, float*, int64_t) {}
