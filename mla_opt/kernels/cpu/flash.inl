// Attention of a tile of query rows to a run of latent rows, one pass over the rows.
//
// Included by each tier, inside its own namespace, after LANES (floats in a vector) and the shape
// of the register tiles:
//   SCORE_VECTORS    vectors of query rows a score tile has at most
//   SCORE_KEYS_WIDE  keys it has when it has that many vectors
//   SCORE_KEYS_ONE   keys it has with one vector
//   VALUE_VECTORS    vectors of columns a value tile has at most
//   VALUE_ROWS       query rows it has
//
//   block of keys       rows [n, C + R], read where they lie if they are float32
//   scores  [n, rows]   query rows in lanes: rows are never transposed, only broadcast
//   softmax             lane by lane, with a running maximum and sum per query row
//   values  [rows, C]   the same rows, still in the cache, times the probabilities
//
// so a latent row is read from memory once, for keys and for values.

#include "vectors.inl"

constexpr int kBlockKeys = 96;

// Not those of the standard library: templates of other namespaces that are compiled for a tier's
// instructions could become the copy that the linker keeps for everyone.
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }
inline void fill(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}
template <int N>
struct Size {
  static constexpr int value = N;
};

inline int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// ---- the query, packed --------------------------------------------------------------------------

// Vectors in the group of query rows that starts at vector `at` of `count`.
inline int group_vectors(int64_t at, int64_t count) {
  return count - at < SCORE_VECTORS ? 1 : SCORE_VECTORS;
}

int64_t partial_stride(const Problem& p) { return padded(p.kv_lora_rank); }

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

// ---- a block of latent rows ---------------------------------------------------------------------

// Keys as the register tiles read them; c_kv has full vectors behind every row's start.
struct Block {
  const float* c_kv;
  const float* k_pe;
  ptrdiff_t c_kv_stride, k_pe_stride;
  int64_t first;
  int keys;
};

template <class T>
void widen(const T* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
}

// Rows of another type, or not of full vectors, as floats with zeros behind c_kv.
template <class T>
Block widened(const Problem& p, const Segment& rows, int64_t first, int keys, float* to) {
  const int64_t rank = p.kv_lora_rank, stride = padded(rank) + p.rope_dim;
  const auto* c_kv = reinterpret_cast<const T*>(rows.c_kv) + (first - rows.first) * rows.c_kv_stride;
  const auto* k_pe = reinterpret_cast<const T*>(rows.k_pe) + (first - rows.first) * rows.k_pe_stride;
  for (int key = 0; key < keys; ++key) {
    float* row = to + key * stride;
    widen(c_kv + key * rows.c_kv_stride, row, rank);
    for (int64_t d = rank; d < padded(rank); ++d) row[d] = 0.0f;
    if (p.rope_dim) widen(k_pe + key * rows.k_pe_stride, row + padded(rank), p.rope_dim);
  }
  return {to, to + padded(rank), stride, stride, first, keys};
}

inline bool read_in_place(const Problem& p, const Segment& rows) {
  return rows.type == MLA_OPT_FLOAT32 && p.kv_lora_rank % LANES == 0;
}

Block block_of(const Problem& p, const Segment& rows, int64_t first, int keys, float* buffer) {
  if (read_in_place(p, rows)) {
    const int64_t row = first - rows.first;
    return {reinterpret_cast<const float*>(rows.c_kv) + row * rows.c_kv_stride,
            reinterpret_cast<const float*>(rows.k_pe) + row * rows.k_pe_stride,
            rows.c_kv_stride, rows.k_pe_stride, first, keys};
  }
  if (rows.type == MLA_OPT_FLOAT32) return widened<float>(p, rows, first, keys, buffer);
  if (rows.type == MLA_OPT_FLOAT16) return widened<Half>(p, rows, first, keys, buffer);
  return widened<BFloat16>(p, rows, first, keys, buffer);
}

// ---- scores -------------------------------------------------------------------------------------

// Adds the products over `width` dims to a tile of KEYS keys and VECTORS vectors of query rows.
template <int KEYS, int VECTORS, int STRIDE>
inline __attribute__((always_inline)) void multiply(Vector (&tile)[KEYS][VECTORS], const float* rows,
                                                    ptrdiff_t stride, const float* query,
                                                    int64_t width) {
  // A stride known to the compiler becomes part of the address, and saves a register per key.
  const ptrdiff_t step = STRIDE ? STRIDE : stride;
  for (int64_t d = 0; d < width; ++d) {
    Vector q[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) q[v] = load(query + (d * VECTORS + v) * LANES);
#pragma GCC unroll 32
    for (int k = 0; k < KEYS; ++k) {
      const Vector key = broadcast(rows[k * step + d]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) tile[k][v] += key * q[v];
    }
  }
}

template <int KEYS, int VECTORS, int STRIDE>
void score_tile(const Problem& p, const Block& block, int key, const float* query, float* scores,
                int64_t score_stride) {
  Vector tile[KEYS][VECTORS] = {};
  multiply<KEYS, VECTORS, STRIDE>(tile, block.c_kv + key * block.c_kv_stride, block.c_kv_stride,
                                  query, p.kv_lora_rank);
  if (p.rope_dim)
    multiply<KEYS, VECTORS, STRIDE>(tile, block.k_pe + key * block.k_pe_stride, block.k_pe_stride,
                                    query + p.kv_lora_rank * VECTORS * LANES, p.rope_dim);
#pragma GCC unroll 32
  for (int k = 0; k < KEYS; ++k)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(scores + (key + k) * score_stride + v * LANES, tile[k][v]);
}

template <int KEYS, int VECTORS, int STRIDE>
void score_keys(const Problem& p, const Block& block, const float* query, float* scores,
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
void score_block(const Problem& p, const Block& block, const float* query, int64_t vectors,
                 float* scores) {
  const int64_t stride = vectors * LANES;
  for (int64_t at = 0; at < vectors;) {
    const int group = group_vectors(at, vectors);
    float* to = scores + at * LANES;
    if (group == SCORE_VECTORS)
      score_keys<SCORE_KEYS_WIDE, SCORE_VECTORS, STRIDE>(p, block, query, to, stride);
    else
      score_keys<SCORE_KEYS_ONE, 1, STRIDE>(p, block, query, to, stride);
    query += group * LANES * row_width(p);
    at += group;
  }
}

// Rows of the widths in use get addresses of their own.
void score(const Problem& p, const Block& block, const float* query, int64_t vectors,
           float* scores) {
  const bool packed = block.c_kv_stride == block.k_pe_stride || p.rope_dim == 0;
  if (packed && block.c_kv_stride == 576) return score_block<576>(p, block, query, vectors, scores);
  if (packed && block.c_kv_stride == 512) return score_block<512>(p, block, query, vectors, scores);
  if (packed && block.c_kv_stride == 288) return score_block<288>(p, block, query, vectors, scores);
  return score_block<0>(p, block, query, vectors, scores);
}

// ---- masks and softmax --------------------------------------------------------------------------

#include "masks.inl"

// Running state of the softmax, per query row.
struct Softmax {
  float* maximum;
  float* sum;
  float* keep;  // what the rows' earlier output is to be multiplied by
};

// Turns the scores of one vector of query rows into probabilities, up to the common factor.
void soften(float* scores, int64_t stride, int keys, float* maximum, float* sum, float* keep) {
  const Vector before = load(maximum);
  Vector highest = before;
  for (int key = 0; key < keys; ++key) highest = larger(load(scores + key * stride), highest);
  // Where nothing may be seen yet the maximum is -inf, and -inf - -inf would be NaN.
  const Vector base = highest == broadcast(kMinusInfinity) ? Vector{} : highest;
  const Vector kept = exp2_nonpositive((before - base) * kLog2e);
  Vector total = load(sum) * kept;
  for (int key = 0; key < keys; ++key) {
    const Vector probability = exp2_nonpositive((load(scores + key * stride) - base) * kLog2e);
    store(scores + key * stride, probability);
    total += probability;
  }
  store(maximum, highest);
  store(sum, total);
  store(keep, kept);
}

// ---- values -------------------------------------------------------------------------------------

template <int ROWS, int VECTORS>
void value_tile(const Block& block, const float* probabilities, int64_t probability_stride,
                const float* keep, int64_t column, float* output, int64_t output_stride) {
  Vector tile[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v)
      tile[r][v] = load(output + r * output_stride + column + v * LANES) * keep[r];
  const float* values = block.c_kv + column;
  for (int key = 0; key < block.keys; ++key) {
    Vector value[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) value[v] = load(values + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vector probability = broadcast(probabilities[r]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) tile[r][v] += probability * value[v];
    }
    values += block.c_kv_stride;
    probabilities += probability_stride;
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(output + r * output_stride + column + v * LANES, tile[r][v]);
}

template <int VECTORS>
void value_columns(const Block& block, const float* probabilities, int64_t probability_stride,
                   const float* keep, int64_t rows, int64_t column, float* output,
                   int64_t output_stride) {
  int64_t row = 0;
  const auto tile = [&](auto size) {
    for (; row + size.value <= rows; row += size.value)
      value_tile<size.value, VECTORS>(block, probabilities + row, probability_stride, keep + row,
                                      column, output + row * output_stride, output_stride);
  };
  tile(Size<VALUE_ROWS>{});
  if (VALUE_ROWS > 4) tile(Size<4>{});
  if (VALUE_ROWS > 2) tile(Size<2>{});
  tile(Size<1>{});
}

// Columns outermost: a strip of the block then stays in the first-level cache for all rows.
void add_values(const Block& block, int64_t rank, const float* probabilities,
                int64_t probability_stride, const float* keep, int64_t rows, float* output) {
  int64_t column = 0;
  const int64_t stride = padded(rank);
  for (; column + VALUE_VECTORS * LANES <= stride; column += VALUE_VECTORS * LANES)
    value_columns<VALUE_VECTORS>(block, probabilities, probability_stride, keep, rows, column,
                                 output, stride);
  for (; column < stride; column += LANES)
    value_columns<1>(block, probabilities, probability_stride, keep, rows, column, output, stride);
}

// ---- a task -------------------------------------------------------------------------------------

// Where a thread keeps what belongs to one block.
struct Workspace {
  float* scores;  // [kBlockKeys, rows]
  float* keep;    // [rows]
  float* rows;    // [kBlockKeys, C + R] if rows are widened
  float* bias;    // [kBlockKeys, LANES]
};

bool reserve(const Problem& p, int64_t rows, Scratch& scratch, Workspace& workspace) {
  const int64_t width = padded(p.kv_lora_rank) + p.rope_dim;
  const int64_t sizes[] = {kBlockKeys * padded(rows), padded(rows), padded(kBlockKeys * width),
                           kBlockKeys * LANES};
  size_t total = 0;
  for (const int64_t size : sizes) total += static_cast<size_t>(padded(size));
  auto* start = reinterpret_cast<float*>(scratch.reserve(total * sizeof(float)));
  if (!start) return false;
  float** const parts[] = {&workspace.scores, &workspace.keep, &workspace.rows, &workspace.bias};
  for (int i = 0; i < 4; ++i) {
    *parts[i] = start;
    start += padded(sizes[i]);
  }
  return true;
}

void attend_block(const Problem& p, const Tile& tile, const float* query, const Block& block,
                  const Workspace& workspace, const Partial& partial) {
  const int64_t rows = padded(tile.count), vectors = rows / LANES;
  score(p, block, query, vectors, workspace.scores);
  for (int64_t at = 0; at < rows; at += LANES) {
    float* scores = workspace.scores + at;
    mask(p, tile, at, block, scores, rows, workspace.bias);
    soften(scores, rows, block.keys, partial.maximum + at, partial.sum + at, workspace.keep + at);
  }
  add_values(block, p.kv_lora_rank, workspace.scores, rows, workspace.keep, tile.count,
             partial.output);
}

bool attend(const Problem& p, const Tile& tile, const void* packed, int64_t first_key,
            int64_t end_key, bool copy, const Partial& partial, Scratch& scratch) {
  Workspace workspace;
  if (!reserve(p, tile.count, scratch, workspace)) return false;
  const int64_t rows = padded(tile.count);
  fill(partial.output, tile.count * padded(p.kv_lora_rank), 0.0f);
  fill(partial.maximum, rows, kMinusInfinity);
  fill(partial.sum, rows, 0.0f);
  const int64_t valid = valid_len(p, tile.sequence);
  // No row of the tile sees further than its last one.
  const int64_t seen = last_key(p, valid, tile.first + tile.count - 1) + 1;
  const Segments all = segments(p, tile.sequence);
  for (int i = 0; i < all.count; ++i) {
    const Segment& segment = all.segment[i];
    const int64_t end = least(end_key, segment.first + segment.count);
    for (int64_t key = greatest(first_key, segment.first); key < end; key += kBlockKeys) {
      const auto keys = static_cast<int>(least(kBlockKeys, end - key));
      if (copy && key < p.cache_len) copy_past_rows(p, tile.sequence, key, keys);
      const auto visible = static_cast<int>(least(keys, seen - key));
      if (visible <= 0) continue;
      attend_block(p, tile, static_cast<const float*>(packed),
                   block_of(p, segment, key, visible, workspace.rows), workspace, partial);
    }
  }
  return true;
}

#include "finish.inl"
