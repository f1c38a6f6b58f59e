// Scores and weighted sums of bfloat16 rows by tdpbf16ps, which multiplies tiles of 16 rows of 16 pairs
// and adds them in float32. Included by the tier amx, after tiles_amx.inl and rows_bf16.inl.
//
//   scores  [16 keys, 16 query rows]     key rows as they lie in memory, times the packed queries
//   output  [16 query rows, 16 columns]  probabilities, turned over, times interleaved rows
//
// Tiles 0 to 3 are sums, 4 and 6 their rows, 5 and 7 their columns.

// ---- scores -------------------------------------------------------------------------------------

// Keys from the first of a tile on, a part of their dims.
struct Part {
  const BFloat16* rows;
  ptrdiff_t stride;
  int64_t dims;
};

struct KeyTile {
  Part part[2];

  KeyTile(const Problem& p, const Block& block, int key)
      : part{{block.front + key * block.front_stride, block.front_stride, scored_front(p)},
             {block.back + key * block.back_stride, block.back_stride, back_width(p)}} {}
};

// Rows that become ready with each step of 64 keys: all of a block with those of DeepSeek's 576 dims.
// In the weighted sum, too, they take longer, as that waits for the same units.
constexpr int kReadyRows = 4;

// 64 keys, one vector of query rows.
void score_four_by_one(const KeyTile& keys, const uint32_t* query, float* scores, int64_t stride,
                       Conversion* ahead) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (const Part& part : keys.part) {
    const ptrdiff_t row = part.stride * 2, next = kTileRows * part.stride;
    const BFloat16* from = part.rows;
    for (int64_t d = 0; d < part.dims; d += kTileDims) {
      _tile_loadd(5, query, kTileBytes);
      _tile_loadd(4, from, row);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, from + next, row);
      _tile_dpbf16ps(1, 6, 5);
      _tile_loadd(4, from + 2 * next, row);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, from + 3 * next, row);
      _tile_dpbf16ps(3, 6, 5);
      if (ahead) ahead->some(kReadyRows);
      from += kTileDims;
      query += kTilePairs * LANES;
    }
  }
  const int64_t to = stride * 4;
  _tile_stored(0, scores, to);
  _tile_stored(1, scores + kTileRows * stride, to);
  _tile_stored(2, scores + 2 * kTileRows * stride, to);
  _tile_stored(3, scores + 3 * kTileRows * stride, to);
}

// 32 keys, two vectors of query rows.
void score_two_by_two(const KeyTile& keys, const uint32_t* query, float* scores, int64_t stride) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (const Part& part : keys.part) {
    const ptrdiff_t row = part.stride * 2, next = kTileRows * part.stride;
    const BFloat16* from = part.rows;
    for (int64_t d = 0; d < part.dims; d += kTileDims) {
      _tile_loadd(5, query, 2 * kTileBytes);
      _tile_loadd(7, query + LANES, 2 * kTileBytes);
      _tile_loadd(4, from, row);
      _tile_dpbf16ps(0, 4, 5);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(6, from + next, row);
      _tile_dpbf16ps(2, 6, 5);
      _tile_dpbf16ps(3, 6, 7);
      from += kTileDims;
      query += kTilePairs * 2 * LANES;
    }
  }
  const int64_t to = stride * 4;
  _tile_stored(0, scores, to);
  _tile_stored(1, scores + LANES, to);
  _tile_stored(2, scores + kTileRows * stride, to);
  _tile_stored(3, scores + kTileRows * stride + LANES, to);
}

// As many keys as tiles are configured for, a group of one or two vectors of query rows.
void score_one_by_any(const KeyTile& keys, const uint32_t* query, int vectors, float* scores,
                      int64_t stride) {
  for (int v = 0; v < vectors; ++v) {
    const uint32_t* column = query + v * LANES;
    _tile_zero(0);
    for (const Part& part : keys.part)
      for (int64_t d = 0; d < part.dims; d += kTileDims) {
        _tile_loadd(4, part.rows + d, part.stride * 2);
        _tile_loadd(5, column, vectors * kTileBytes);
        _tile_dpbf16ps(0, 4, 5);
        column += kTilePairs * vectors * LANES;
      }
    _tile_stored(0, scores + v * LANES, stride * 4);
  }
}

// Full tiles of keys.
int score_tiles(const Problem& p, const Block& block, const uint32_t* query, int vectors,
                float* scores, int64_t stride) {
  const int wide = vectors == 1 ? 4 * kTileRows : 2 * kTileRows;
  int key = 0;
  for (; key + wide <= block.keys; key += wide) {
    const KeyTile keys(p, block, key);
    if (vectors == 1)
      score_four_by_one(keys, query, scores + key * stride, stride, block.ahead);
    else
      score_two_by_two(keys, query, scores + key * stride, stride);
  }
  for (; key + kTileRows <= block.keys; key += kTileRows)
    score_one_by_any(KeyTile(p, block, key), query, vectors, scores + key * stride, stride);
  return key;
}

template <class Body>
void for_each_group(const Problem& p, const void* packed, int64_t vectors, Body body) {
  const auto* query = static_cast<const uint32_t*>(packed);
  for (int64_t at = 0; at < vectors;) {
    const int group = group_vectors(at, vectors);
    body(query, group, at * LANES);
    query += group * LANES * row_width(p) / 2;
    at += group;
  }
}

void score(const Problem& p, const Block& block, const void* packed, int64_t vectors,
           float* scores, int64_t stride, float* /*buffer*/, Ahead& /*ahead*/) {
  written();
  const int full = block.keys / kTileRows * kTileRows, rest = block.keys - full;
  for_each_group(p, packed, vectors, [&](const uint32_t* query, int group, int64_t at) {
    score_tiles(p, block, query, group, scores + at, stride);
  });
  if (rest) {
    configure(rest);
    const KeyTile keys(p, block, full);
    for_each_group(p, packed, vectors, [&](const uint32_t* query, int group, int64_t at) {
      score_one_by_any(keys, query, group, scores + full * stride + at, stride);
    });
    configure(kTileRows);
  }
  // Here and not in the query, which would be rounded once more.
  const Vector scale = broadcast(static_cast<float>(p.scale));
  for (int key = 0; key < block.keys; ++key)
    for (float* at = scores + key * stride; at < scores + key * stride + vectors * LANES; at += LANES)
      store(at, load(at) * scale);
}

// ---- weighted sums of the rows ------------------------------------------------------------------

// Probabilities of two neighbouring keys, the first one in the lower half.
inline __m512i paired(const float* first, int64_t stride, int keys) {
  const Vector second = keys > 1 ? load(first + stride) : Vector{};
  const Vector values = keys > 0 ? load(first) : Vector{};
  const auto low = _mm512_cvtepu16_epi32(
      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(values))));
  const auto high = _mm512_cvtepu16_epi32(
      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(second))));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Probabilities [keys, query rows] become tiles [16 query rows, 16 pairs of keys], one for each 32 keys,
// in the place of the first ones. Behind the last key there are zeros.
void turn_probabilities(float* probabilities, int64_t stride, int64_t vectors, int keys) {
  for (int64_t at = 0; at < vectors * LANES; at += LANES)
    for (int key = 0; key < keys; key += 2 * kTilePairs) {
      __m512i tile[16];
#pragma GCC unroll 16
      for (int pair = 0; pair < kTilePairs; ++pair)
        tile[pair] = paired(probabilities + (key + 2 * pair) * stride + at, stride,
                            keys - key - 2 * pair);
      turn_over(tile);
      for (int row = 0; row < kTileRows; ++row)
        _mm512_storeu_si512(probabilities + (key / 2 + row) * stride + at, tile[row]);
    }
}

// What a strip of columns is made of, for the query rows of a tile.
struct Strip {
  const uint32_t* values;      // [pairs, columns]
  int64_t pairs;               // a multiple of 16
  const float* probabilities;  // turned over
  int64_t probability_stride;
};

void add_wide_strip(const Strip& strip, float* output, int64_t stride) {
  const int64_t to = stride * 4, from = strip.probability_stride * 4;
  _tile_loadd(0, output, to);
  _tile_loadd(1, output + LANES, to);
  _tile_loadd(2, output + 2 * LANES, to);
  _tile_loadd(3, output + 3 * LANES, to);
  const uint32_t* values = strip.values;
  for (int64_t pair = 0; pair < strip.pairs; pair += kTilePairs) {
    _tile_loadd(4, strip.probabilities + pair * strip.probability_stride, from);
    _tile_loadd(5, values, 4 * kTileBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(7, values + LANES, 4 * kTileBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, values + 2 * LANES, 4 * kTileBytes);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(7, values + 3 * LANES, 4 * kTileBytes);
    _tile_dpbf16ps(3, 4, 7);
    values += kTilePairs * 4 * LANES;
  }
  _tile_stored(0, output, to);
  _tile_stored(1, output + LANES, to);
  _tile_stored(2, output + 2 * LANES, to);
  _tile_stored(3, output + 3 * LANES, to);
}

void add_narrow_strip(const Strip& strip, float* output, int64_t stride) {
  const int64_t to = stride * 4, from = strip.probability_stride * 4;
  _tile_loadd(0, output, to);
  _tile_loadd(1, output + LANES, to);
  const uint32_t* values = strip.values;
  for (int64_t pair = 0; pair < strip.pairs; pair += kTilePairs) {
    _tile_loadd(4, strip.probabilities + pair * strip.probability_stride, from);
    _tile_loadd(5, values, 2 * kTileBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(7, values + LANES, 2 * kTileBytes);
    _tile_dpbf16ps(1, 4, 7);
    values += kTilePairs * 2 * LANES;
  }
  _tile_stored(0, output, to);
  _tile_stored(1, output + LANES, to);
}

void add_values(const Problem& p, const Block& block, float* probabilities,
                int64_t probability_stride, const float* keep, int64_t rows, float* output,
                float* buffer, Ahead& ahead) {
  const int64_t rank = p.kv_lora_rank, vectors = padded(rows) / LANES;
  auto* values = reinterpret_cast<uint32_t*>(buffer);
  const int pairs = (block.keys + kTileDims - 1) / kTileDims * kTilePairs;
  turn_probabilities(probabilities, probability_stride, vectors, block.keys);
  keep_output(keep, rows, output, rank);
  for (int64_t column = 0; column < rank; column += kStripVectors * LANES) {
    const int64_t wide = least(kStripVectors * LANES, rank - column);
    interleave_strip(block, column, wide, pairs, values, ahead);
    written();
    const auto add = wide == kStripVectors * LANES ? add_wide_strip : add_narrow_strip;
    // The last tile may reach into rows that are there for this, and that nobody reads.
    for (int64_t row = 0; row < vectors * LANES; row += kTileRows)
      add({values, pairs, probabilities + row, probability_stride}, output + row * rank + column, rank);
  }
}
