// Scores and weighted sums of float32 and float16 rows on tiles that multiply bfloat16 numbers: rows,
// queries and probabilities are split into parts (parts_bf16.inl), and the sums come out as those of
// float32 do, at several times the rate of its own multiply-adds. Included by the tier amx_parts, after
// tiles_amx.inl and parts_bf16.inl.
//
//   scores  [16 keys, 16 query rows]     parts of rows, times parts of the packed queries
//   output  [16 query rows, 16 columns]  parts of probabilities, turned over, times parts of paired rows
//
// What is split stays in the first-level cache until all query rows have been multiplied with it.
//
// Tiles 0 to 3 are sums, 4 and 6 one factor, 5 and 7 the other.

constexpr int kBlockKeys = 64;
inline int64_t block_keys(int64_t /*rows*/) { return kBlockKeys; }
constexpr int kKeyTiles = kBlockKeys / kTileRows;
constexpr int kKeySteps = kBlockKeys / kTileDims;  // of 32 keys
constexpr int kChunkSteps = 2;                     // of 32 dims, of a block's rows at a time
constexpr int kStripVectors = 4;                   // columns of a block's rows at a time; the last may be 2
constexpr int64_t kTileWords = kTileRows * kTilePairs;

// Whether the rows are what this is for, and fill tiles. To split float32 rows takes longer than tiles
// save with 16 query rows, so that there have to be more.
bool fits(const Problem& p) {
  const int32_t rows = p.cache ? p.cache_type : p.type;
  const bool is_worth_it =
      rows == MLA_OPT_FLOAT16 || (rows == MLA_OPT_FLOAT32 && query_rows(p) > LANES);
  return is_worth_it && p.kv_lora_rank % kTileDims == 0 && front_width(p) % kTileDims == 0 &&
         back_width(p) % kTileDims == 0;
}

inline int64_t dim_steps(const Problem& p) { return row_width(p) / kTileDims; }

// ---- the query, packed: [16 query rows at a time, 32 dims at a time, parts, pairs, rows] ----------

size_t query_bytes(const Problem& p, int64_t rows) {
  return static_cast<size_t>(padded(rows) * row_width(p)) * kParts * sizeof(BFloat16);
}

inline __m512 load_query(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load_query(const Half* from) { return load_floats(from); }
inline __m512 load_query(const BFloat16* from) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

template <class T>
void pack_vector(const Problem& p, const Tile& tile, int64_t first, uint32_t* packed) {
  const __m512 scale = _mm512_set1_ps(static_cast<float>(p.scale));
  const T* rows[kTileRows];
  for (int64_t lane = 0; lane < kTileRows; ++lane)
    rows[lane] = static_cast<const T*>(p.query) +
                 query_offset(p, tile.sequence, tile.first + least(first + lane, tile.count - 1),
                              row_width(p));
  for (int64_t step = 0; step < dim_steps(p); ++step) {
    __m512i parts[kParts][kTileRows];
    for (int lane = 0; lane < kTileRows; ++lane) {
      const T* from = rows[lane] + step * kTileDims;
      split<kParts>(scale * load_query(from), scale * load_query(from + LANES),
                             [&](int part, __m512i pairs) { parts[part][lane] = pairs; });
    }
    for (auto& part : parts) {
      turn_over(part);
      for (const __m512i& pairs : part) {
        _mm512_storeu_si512(packed, pairs);
        packed += LANES;
      }
    }
  }
}

// Rows behind the last one are that one again: nobody reads what becomes of them.
template <class T>
void pack_rows(const Problem& p, const Tile& tile, uint32_t* packed) {
  for (int64_t first = 0; first < tile.count; first += LANES)
    pack_vector<T>(p, tile, first, packed + first * row_width(p) * kParts / 2);
}

void pack_query(const Problem& p, const Tile& tile, void* packed) {
  auto* to = static_cast<uint32_t*>(packed);
  if (p.type == MLA_OPT_FLOAT32) return pack_rows<float>(p, tile, to);
  if (p.type == MLA_OPT_FLOAT16) return pack_rows<Half>(p, tile, to);
  return pack_rows<BFloat16>(p, tile, to);
}

// ---- latent rows --------------------------------------------------------------------------------

struct Block {
  const char* front;
  const char* back;
  ptrdiff_t front_stride, back_stride;  // elements
  int64_t first;
  int keys;
  bool is_half;
};

// Room for the parts of a chunk or of a strip, and for those of all probabilities.
constexpr int64_t kChunkWords = kChunkSteps * kParts * kKeyTiles * kTileWords;
constexpr int64_t kStripWords = kKeySteps * kParts * kStripVectors * kTileWords;
constexpr int64_t kBufferWords = kChunkWords > kStripWords ? kChunkWords : kStripWords;
constexpr int64_t kProbabilityWords = kKeySteps * kParts * kTileWords;  // of 16 query rows

int64_t block_floats(const Problem&, int64_t rows) {
  return kBufferWords + padded(rows) / LANES * kProbabilityWords;
}

Block block_of(const Problem&, const Segment& rows, int64_t first, int keys, const Next&, float*) {
  const int64_t row = first - rows.first, size = static_cast<int64_t>(element_size(rows.type));
  return {rows.front + row * rows.front_stride * size,
          rows.back + row * rows.back_stride * size,
          rows.front_stride,
          rows.back_stride,
          first,
          keys,
          rows.type == MLA_OPT_FLOAT16};
}

// ---- scores -------------------------------------------------------------------------------------

// 32 dims of all keys of a block, in parts: [parts, keys, pairs]. Zeros behind the last key.
template <class T>
void split_keys(const Problem& p, const Block& block, int64_t step, uint32_t* parts) {
  const int64_t dim = step * kTileDims, in_back = dim - scored_front(p);
  const T* from = in_back < 0 ? reinterpret_cast<const T*>(block.front) + dim
                              : reinterpret_cast<const T*>(block.back) + in_back;
  const ptrdiff_t stride = in_back < 0 ? block.front_stride : block.back_stride;
  for (int key = 0; key < kBlockKeys; ++key, from += stride) {
    const auto store_part = [&](int part, __m512i pairs) {
      _mm512_storeu_si512(parts + (part * kBlockKeys + key) * kTilePairs, pairs);
    };
    if (key < block.keys)
      split<kRowParts<T>>(load_floats(from), load_floats(from + LANES), store_part);
    else
      split<kRowParts<T>>(_mm512_setzero_ps(), _mm512_setzero_ps(), store_part);
  }
}

// Adds the products over 32 dims to the sums of 64 keys and 16 query rows. With each four, `lines` are
// fetched ahead: all at once while rows are split, they would keep the memory from those.
template <int PARTS>
inline __attribute__((always_inline)) void multiply_keys(const uint32_t* keys,
                                                         const uint32_t* query, int lines,
                                                         Ahead& ahead) {
#pragma GCC unroll 3
  for (int j = 0; j < kParts; ++j) {
    _tile_loadd(5, query + j * kTileWords, kTileBytes);
    for (int i = 0; i < PARTS && i < kParts - j; ++i) {
      const uint32_t* from = keys + i * kKeyTiles * kTileWords;
      for (int line = 0; line < lines; ++line) ahead.fetch();
      _tile_loadd(4, from, kTileBytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, from + kTileWords, kTileBytes);
      _tile_dpbf16ps(1, 6, 5);
      _tile_loadd(4, from + 2 * kTileWords, kTileBytes);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, from + 3 * kTileWords, kTileBytes);
      _tile_dpbf16ps(3, 6, 5);
    }
  }
}

// Adds the products over a chunk of dims to scores [64 keys, 16 query rows].
template <int PARTS>
void score_chunk(const uint32_t* keys, const uint32_t* query, int64_t steps, bool is_first,
                 float* scores, int64_t stride, int lines, Ahead& ahead) {
  const int64_t row = stride * 4, next = kTileRows * stride;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, scores, row);
    _tile_loadd(1, scores + next, row);
    _tile_loadd(2, scores + 2 * next, row);
    _tile_loadd(3, scores + 3 * next, row);
  }
  for (int64_t step = 0; step < steps; ++step)
    multiply_keys<PARTS>(keys + step * kParts * kKeyTiles * kTileWords,
                         query + step * kParts * kTileWords, lines, ahead);
  _tile_stored(0, scores, row);
  _tile_stored(1, scores + next, row);
  _tile_stored(2, scores + 2 * next, row);
  _tile_stored(3, scores + 3 * next, row);
}

template <class T>
void score_rows(const Problem& p, const Block& block, const uint32_t* query, int64_t vectors,
                float* scores, int64_t stride, uint32_t* parts, Ahead& ahead) {
  const int64_t steps = dim_steps(p), of_vector = steps * kParts * kTileWords;
  const int lines = static_cast<int>(ahead.lines() / (kProducts * vectors * steps)) + 1;
  for (int64_t first = 0; first < steps; first += kChunkSteps) {
    const int64_t count = least(kChunkSteps, steps - first);
    for (int64_t step = 0; step < count; ++step)
      split_keys<T>(p, block, first + step, parts + step * kParts * kKeyTiles * kTileWords);
    written();
    for (int64_t v = 0; v < vectors; ++v)
      score_chunk<kRowParts<T>>(parts, query + v * of_vector + first * kParts * kTileWords, count,
                                first == 0, scores + v * LANES, stride, lines, ahead);
  }
  written();
}

void score(const Problem& p, const Block& block, const void* packed, int64_t vectors,
           float* scores, int64_t stride, float* buffer, Ahead& ahead) {
  const auto* query = static_cast<const uint32_t*>(packed);
  auto* parts = reinterpret_cast<uint32_t*>(buffer);
  if (block.is_half) return score_rows<Half>(p, block, query, vectors, scores, stride, parts, ahead);
  return score_rows<float>(p, block, query, vectors, scores, stride, parts, ahead);
}

// ---- weighted sums of the rows ------------------------------------------------------------------

inline __m512 probability(const float* probabilities, int64_t stride, int key, int keys) {
  return key < keys ? _mm512_loadu_ps(probabilities + key * stride) : _mm512_setzero_ps();
}

// Probabilities [keys, 16 query rows] as parts [32 keys at a time, parts, query rows, pairs of keys].
void turn_probabilities(const float* probabilities, int64_t stride, int keys, uint32_t* parts) {
  for (int first = 0; first < keys; first += kTileDims) {
    __m512i tiles[kParts][kTilePairs];
#pragma GCC unroll 16
    for (int pair = 0; pair < kTilePairs; ++pair) {
      const int key = first + 2 * pair;
      split<kParts>(probability(probabilities, stride, key, keys),
                           probability(probabilities, stride, key + 1, keys),
                           [&](int part, __m512i pairs) { tiles[part][pair] = pairs; });
    }
    for (auto& tile : tiles) {
      turn_over(tile);
      for (const __m512i& row : tile) {
        _mm512_storeu_si512(parts, row);
        parts += kTilePairs;
      }
    }
  }
}

// A strip of columns of all rows of a block, as parts [32 keys at a time, parts, vectors, pairs,
// columns]. Zeros behind the last row.
template <class T, int VECTORS>
void split_strip(const Problem& p, const Block& block, int64_t column, uint32_t* parts, Ahead& ahead) {
  // Where the strip begins in front, and where it would in the back.
  const int64_t in_back = column - front_width(p);
  const T* front = reinterpret_cast<const T*>(block.front) + column;
  const T* back = reinterpret_cast<const T*>(block.back) + in_back;
  const auto row = [&](int key, int vector) {
    if (key >= block.keys) return _mm512_setzero_ps();
    const bool in_front = in_back + vector * LANES < 0;
    return load_floats((in_front ? front + key * block.front_stride : back + key * block.back_stride) +
                       vector * LANES);
  };
  for (int first = 0; first < block.keys; first += kTileDims) {
    for (int pair = 0; pair < kTilePairs; ++pair)
#pragma GCC unroll 4
      for (int vector = 0; vector < VECTORS; ++vector) {
        ahead.fetch();
        const int key = first + 2 * pair;
        split<kRowParts<T>>(
            row(key, vector), row(key + 1, vector), [&](int part, __m512i pairs) {
              _mm512_storeu_si512(
                  parts + (part * VECTORS + vector) * kTileWords + pair * LANES, pairs);
            });
      }
    parts += kParts * VECTORS * kTileWords;
  }
}

// Adds the products over 32 keys to the sums of 16 query rows and 4 or 2 vectors of columns.
template <int PARTS, int VECTORS>
inline __attribute__((always_inline)) void multiply_values(const uint32_t* probabilities,
                                                           const uint32_t* values) {
#pragma GCC unroll 3
  for (int i = 0; i < kParts; ++i) {
    _tile_loadd(4, probabilities + i * kTileWords, kTileBytes);
    for (int j = 0; j < PARTS && j < kParts - i; ++j) {
      const uint32_t* from = values + j * VECTORS * kTileWords;
      _tile_loadd(5, from, kTileBytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(7, from + kTileWords, kTileBytes);
      _tile_dpbf16ps(1, 4, 7);
      if (VECTORS == 2) continue;
      _tile_loadd(5, from + 2 * kTileWords, kTileBytes);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(7, from + 3 * kTileWords, kTileBytes);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
}

template <int PARTS, int VECTORS>
void add_strip(const uint32_t* probabilities, const uint32_t* values, int64_t steps, float* output,
               int64_t stride) {
  const int64_t row = stride * 4;
  _tile_loadd(0, output, row);
  _tile_loadd(1, output + LANES, row);
  if (VECTORS == 4) {
    _tile_loadd(2, output + 2 * LANES, row);
    _tile_loadd(3, output + 3 * LANES, row);
  }
  for (int64_t step = 0; step < steps; ++step)
    multiply_values<PARTS, VECTORS>(probabilities + step * kParts * kTileWords,
                                    values + step * kParts * VECTORS * kTileWords);
  _tile_stored(0, output, row);
  _tile_stored(1, output + LANES, row);
  if (VECTORS == 4) {
    _tile_stored(2, output + 2 * LANES, row);
    _tile_stored(3, output + 3 * LANES, row);
  }
}

// What a block's strips are multiplied with.
struct Weights {
  const uint32_t* probabilities;  // parts, of 16 query rows after the other
  int64_t vectors;
  int64_t steps;  // of 32 keys
};

template <class T, int VECTORS>
void add_columns(const Problem& p, const Block& block, int64_t column, const Weights& weights,
                 float* output, uint32_t* parts, Ahead& ahead) {
  split_strip<T, VECTORS>(p, block, column, parts, ahead);
  written();
  // The last tile may reach into rows that are there for this, and that nobody reads.
  for (int64_t v = 0; v < weights.vectors; ++v)
    add_strip<kRowParts<T>, VECTORS>(weights.probabilities + v * kProbabilityWords, parts,
                                     weights.steps,
                                     output + v * LANES * p.kv_lora_rank + column, p.kv_lora_rank);
}

template <class T>
void add_rows(const Problem& p, const Block& block, const Weights& weights, float* output,
              uint32_t* parts, Ahead& ahead) {
  int64_t column = 0;
  for (; column + kStripVectors * LANES <= p.kv_lora_rank; column += kStripVectors * LANES)
    add_columns<T, kStripVectors>(p, block, column, weights, output, parts, ahead);
  if (column < p.kv_lora_rank) add_columns<T, 2>(p, block, column, weights, output, parts, ahead);
}

void add_values(const Problem& p, const Block& block, const float* probabilities,
                int64_t probability_stride, const float* keep, int64_t rows, float* output,
                float* buffer, Ahead& ahead) {
  auto* parts = reinterpret_cast<uint32_t*>(buffer);
  uint32_t* turned = parts + kBufferWords;
  const Weights weights{turned, padded(rows) / LANES,
                        (block.keys + kTileDims - 1) / kTileDims};
  for (int64_t v = 0; v < weights.vectors; ++v)
    turn_probabilities(probabilities + v * LANES, probability_stride, block.keys,
                       turned + v * kProbabilityWords);
  keep_output(keep, rows, output, p.kv_lora_rank);
  written();
  if (block.is_half)
    add_rows<Half>(p, block, weights, output, parts, ahead);
  else
    add_rows<float>(p, block, weights, output, parts, ahead);
  written();
}

// Columns are where they belong.
void settle(const Problem&, float*, int64_t) {}
