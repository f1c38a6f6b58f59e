// Flash attention over latent rows, on tensor cores: a tile of latent rows is read once into shared
// memory and serves as keys (all of it) and as values (its c_kv part) for all rows of a query tile.
//
//   for each tile of keys:   scores = query @ rows^T      warps share the keys
//                            weights = exp(scores - max)  exchanged through shared memory
//                            sums += weights @ c_kv       warps share the dims
//
// While one tile is computed with, copies of the next ones are under way (cp.async).
#pragma once

#include "rows.cuh"

namespace mla_opt::cuda {

template <class Element_, int kRank_, int kRope_, Width kWidth_, Memory kMemory_>
struct Config {
  using Element = Element_;
  static constexpr int kRank = kRank_, kRope = kRope_, kColumns = kRank + kRope;
  static constexpr Tile kTile = tile_of(kWidth_, kMemory_);
  static constexpr Layout kLayout = layout_of(kTile, kRank, kRope);
  static constexpr int kWarpsPerRows = kTile.warps_per_rows();
  static constexpr int kWarpKeys = kTile.keys / kWarpsPerRows;  // of the scores, for one warp
  static constexpr int kWarpDims = kRank / kWarpsPerRows;       // of the output, for one warp
  static constexpr int kKeyTiles = kWarpKeys / 8, kDimTiles = kWarpDims / 8;
  // Sums of one score that do not wait for each other.
  static constexpr int kChains = kKeyTiles == 1 ? 2 : 1;

  static_assert(kWarpKeys == 8 || kWarpKeys == 16, "one load of four matrices");
  static_assert(kColumns % 32 == 0 && kWarpDims % 16 == 0 && kTile.keys % 16 == 0, "whole loads");
};

// What a thread is to its block.
struct Place {
  int warp;
  int lane;
  int row_group;  // 16 query rows
  int part;       // which keys, and which dims, of those rows
};

template <class C>
MLA_OPT_DEVICE Place place_of_thread() {
  const int warp = thread_index() / 32;
  return {warp, thread_index() % 32, warp / C::kWarpsPerRows, warp % C::kWarpsPerRows};
}

// The two rows of a fragment that a thread has numbers of, as rows of its sequence.
struct OwnRows {
  int visible[2];
  int64_t bias[2];
};

struct Softmax {
  float maximum[2];
  float sum[2];  // of this thread's keys only
};

// ---- loads ----------------------------------------------------------------------------------------

// Starts copying one row, 16 bytes for each lane at a time.
template <class C>
MLA_OPT_DEVICE void copy_row(uint32_t to, const LatentRow& row, int lane, bool is_real) {
  MLA_OPT_UNROLL
  for (int first = 0; first < C::kColumns / 8; first += 32) {
    const int chunk = first + lane;
    if (chunk >= C::kColumns / 8) break;
    const bool in_c_kv = chunk < C::kRank / 8;
    const char* from = in_c_kv ? row.c_kv + 16 * chunk : row.k_pe + 16 * (chunk - C::kRank / 8);
    copy_async(to + 16 * chunk, from, is_real);
  }
}

template <class C>
MLA_OPT_DEVICE void load_query(const Arguments& a, const Sequence& s, const Place& place, int first,
                               uint32_t shared) {
  for (int row = place.warp; row < C::kTile.rows; row += C::kTile.warps) {
    const bool is_real = first + row < row_count(a);
    const int64_t offset = is_real ? row_offset(a, s, first + row, C::kColumns) : 0;
    const char* from = static_cast<const char*>(a.query) + 2 * offset;
    copy_row<C>(shared + row * C::kLayout.row_bytes, {from, from + 2 * C::kRank}, place.lane,
                is_real);
  }
}

// Rows beyond `end` become zeros: their weights are, and zero times anything must be zero.
template <class C>
MLA_OPT_DEVICE void load_keys(const Arguments& a, const Sequence& s, const Place& place, int first,
                              int end, uint32_t stage) {
  MLA_OPT_UNROLL
  for (int i = 0; i < C::kTile.keys / C::kTile.warps; ++i) {
    const int row = place.warp + i * C::kTile.warps;
    const bool is_real = first + row < end;
    const LatentRow from = row_of_key<C::kRank, C::kRope>(a, s, is_real ? first + row : first);
    copy_row<C>(stage + row * C::kLayout.row_bytes, from, place.lane, is_real);
  }
}

// ---- products -------------------------------------------------------------------------------------

// scores [16, kWarpKeys] = query [16, columns] @ rows [kWarpKeys, columns]^T.
template <class C>
MLA_OPT_DEVICE void multiply_keys(uint32_t query, uint32_t rows, int lane,
                                  float (&scores)[C::kKeyTiles][4]) {
  constexpr int row_bytes = C::kLayout.row_bytes;
  const uint32_t a_address = query + lane % 16 * row_bytes + lane / 16 * 16;
  // 8 keys: four steps of 8 columns; 16 keys: two steps of two tiles.
  const uint32_t b_address =
      C::kKeyTiles == 1
          ? rows + lane % 8 * row_bytes + lane / 8 * 16
          : rows + (lane % 8 + lane / 16 * 8) * row_bytes + lane / 8 % 2 * 16;
  float sums[C::kChains][C::kKeyTiles][4] = {};
  MLA_OPT_UNROLL
  for (int column = 0; column < C::kColumns; column += 32) {
    uint32_t a[2][4], b[2][4];
    load_matrices(a_address + 2 * column, a[0]);
    load_matrices(a_address + 2 * column + 32, a[1]);
    load_matrices(b_address + 2 * column, b[0]);
    if constexpr (C::kKeyTiles == 1) {
      multiply(typename C::Element{}, sums[0][0], a[0], b[0][0], b[0][1]);
      multiply(typename C::Element{}, sums[C::kChains - 1][0], a[1], b[0][2], b[0][3]);
    } else {
      load_matrices(b_address + 2 * column + 32, b[1]);
      MLA_OPT_UNROLL
      for (int step = 0; step < 2; ++step) {
        multiply(typename C::Element{}, sums[0][0], a[step], b[step][0], b[step][1]);
        multiply(typename C::Element{}, sums[0][C::kKeyTiles - 1], a[step], b[step][2], b[step][3]);
      }
    }
  }
  MLA_OPT_UNROLL
  for (int tile = 0; tile < C::kKeyTiles; ++tile)
    MLA_OPT_UNROLL
    for (int i = 0; i < 4; ++i) {
      scores[tile][i] = sums[0][tile][i];
      if constexpr (C::kChains == 2) scores[tile][i] += sums[1][tile][i];
    }
}

// sums [16, kWarpDims] += weights [16, keys] @ c_kv [keys, kWarpDims].
template <class C>
MLA_OPT_DEVICE void multiply_values(uint32_t weights, uint32_t c_kv, int lane,
                                    float (&sums)[C::kDimTiles][4]) {
  const uint32_t a_address = weights + lane % 16 * C::kLayout.weight_row_bytes + lane / 16 * 16;
  const uint32_t b_address = c_kv + lane % 16 * C::kLayout.row_bytes + lane / 16 * 16;
  MLA_OPT_UNROLL
  for (int key = 0; key < C::kTile.keys; key += 16) {
    uint32_t a[4];
    load_matrices(a_address + 2 * key, a);
    MLA_OPT_UNROLL
    for (int tile = 0; tile < C::kDimTiles; tile += 2) {
      uint32_t b[4];
      load_matrices_transposed(b_address + key * C::kLayout.row_bytes + 16 * tile, b);
      multiply(typename C::Element{}, sums[tile], a, b[0], b[1]);
      multiply(typename C::Element{}, sums[tile + 1], a, b[2], b[3]);
    }
  }
}

// ---- softmax --------------------------------------------------------------------------------------

// In a fragment, numbers 0 and 1 belong to the thread's first row, 2 and 3 to its second; odd ones
// to the odd column.
template <class C>
MLA_OPT_DEVICE int key_in_tile(const Place& place, int tile, int i) {
  return place.part * C::kWarpKeys + 8 * tile + 2 * (place.lane % 4) + i % 2;
}

template <class C>
MLA_OPT_DEVICE void mask(const Arguments& a, const Place& place, const OwnRows& rows, int first,
                         float (&scores)[C::kKeyTiles][4]) {
  MLA_OPT_UNROLL
  for (int tile = 0; tile < C::kKeyTiles; ++tile)
    MLA_OPT_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int key = first + key_in_tile<C>(place, tile, i);
      if (key >= rows.visible[i / 2])
        scores[tile][i] = minus_infinity();
      else if (a.bias_kind != BiasKind::kNone)
        scores[tile][i] = biased<typename C::Element>(a, scores[tile][i], rows.bias[i / 2], key);
    }
}

// The four threads of a quad hold one row: after this, all of them hold its result.
MLA_OPT_DEVICE float greatest_of_quad(float value) {
  value = greater(value, exchange_xor(value, 1));
  return greater(value, exchange_xor(value, 2));
}

MLA_OPT_DEVICE float sum_of_quad(float value) {
  value += exchange_xor(value, 1);
  return value + exchange_xor(value, 2);
}

// Address of a number for each part and row of the tile.
template <class C>
MLA_OPT_DEVICE uint32_t shared_number(uint32_t start, int part, int row) {
  return start + 4 * (part * C::kTile.rows + row);
}

template <class C>
MLA_OPT_DEVICE void share_rows(uint32_t start, const Place& place, const float (&value)[2]) {
  if (place.lane % 4 != 0) return;
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i)
    store_shared(
        shared_number<C>(start, place.part, 16 * place.row_group + place.lane / 4 + 8 * i),
        value[i]);
}

// Warps of the same rows wait for each other.
template <class C>
MLA_OPT_DEVICE void row_group_barrier(const Place& place) {
  group_barrier(1 + place.row_group, 32 * C::kWarpsPerRows);
}

// Weights instead of scores: exp(score - max), where max is that of all keys so far.
template <class C>
MLA_OPT_DEVICE void exponentials(const float (&maximum)[2], float (&scores)[C::kKeyTiles][4],
                                 float (&sum)[2]) {
  constexpr float log2_of_e = 1.4426950408889634f;
  MLA_OPT_UNROLL
  for (int tile = 0; tile < C::kKeyTiles; ++tile)
    MLA_OPT_UNROLL
    for (int i = 0; i < 4; ++i) {
      // The difference first: a bias may be the least of all finite numbers.
      scores[tile][i] = exponential_of_2((scores[tile][i] - maximum[i / 2]) * log2_of_e);
      sum[i / 2] += scores[tile][i];
    }
}

template <class C>
MLA_OPT_DEVICE void store_weights(uint32_t weights, const Place& place,
                                  const float (&scores)[C::kKeyTiles][4]) {
  const int row = 16 * place.row_group + place.lane / 4;
  MLA_OPT_UNROLL
  for (int tile = 0; tile < C::kKeyTiles; ++tile)
    MLA_OPT_UNROLL
    for (int i = 0; i < 2; ++i)
      store_shared(weights + (row + 8 * i) * C::kLayout.weight_row_bytes +
                       2 * key_in_tile<C>(place, tile, 0),
                   pack(typename C::Element{}, scores[tile][2 * i], scores[tile][2 * i + 1]));
}

// What sums so far are worth under a new maximum; minus infinity is that of no keys.
MLA_OPT_DEVICE float rescaling(float before, float now) {
  return before == minus_infinity() ? 0.0f
                                    : exponential_of_2((before - now) * 1.4426950408889634f);
}

template <class C>
MLA_OPT_DEVICE void rescale(const float (&factor)[2], float (&sums)[C::kDimTiles][4]) {
  MLA_OPT_UNROLL
  for (int tile = 0; tile < C::kDimTiles; ++tile)
    MLA_OPT_UNROLL
    for (int i = 0; i < 4; ++i) sums[tile][i] *= factor[i / 2];
}

// Scores become weights in shared memory; the sums so far follow the maximum. Two barriers of the
// row group: after the second, all weights of its rows are there.
template <class C>
MLA_OPT_DEVICE void weigh(uint32_t shared, const Place& place, float (&scores)[C::kKeyTiles][4],
                          Softmax& softmax, float (&sums)[C::kDimTiles][4]) {
  float own[2] = {minus_infinity(), minus_infinity()};
  MLA_OPT_UNROLL
  for (int tile = 0; tile < C::kKeyTiles; ++tile)
    MLA_OPT_UNROLL
    for (int i = 0; i < 4; ++i) own[i / 2] = greater(own[i / 2], scores[tile][i]);
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i) own[i] = greatest_of_quad(own[i]);
  share_rows<C>(shared + C::kLayout.maxima, place, own);
  row_group_barrier<C>(place);

  float factor[2], subtracted[2];
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i) {
    float now = softmax.maximum[i];
    const int row = 16 * place.row_group + place.lane / 4 + 8 * i;
    MLA_OPT_UNROLL
    for (int part = 0; part < C::kWarpsPerRows; ++part)
      now = greater(now, load_shared(shared_number<C>(shared + C::kLayout.maxima, part, row)));
    factor[i] = rescaling(softmax.maximum[i], now);
    softmax.maximum[i] = now;
    softmax.sum[i] *= factor[i];
    // Where no key may be seen yet, all scores are minus infinity, and so must stay.
    subtracted[i] = now == minus_infinity() ? 0.0f : now;
  }
  exponentials<C>(subtracted, scores, softmax.sum);
  store_weights<C>(shared + C::kLayout.weights, place, scores);
  rescale<C>(factor, sums);
  row_group_barrier<C>(place);
}

// ---- results --------------------------------------------------------------------------------------

// The sums of weights over all warps of the rows.
template <class C>
MLA_OPT_DEVICE void complete_sums(uint32_t shared, const Place& place, Softmax& softmax) {
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i) softmax.sum[i] = sum_of_quad(softmax.sum[i]);
  share_rows<C>(shared + C::kLayout.sums, place, softmax.sum);
  row_group_barrier<C>(place);
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = 16 * place.row_group + place.lane / 4 + 8 * i;
    softmax.sum[i] = 0.0f;
    MLA_OPT_UNROLL
    for (int part = 0; part < C::kWarpsPerRows; ++part)
      softmax.sum[i] += load_shared(shared_number<C>(shared + C::kLayout.sums, part, row));
  }
}

// A block's part of a split attention.
struct Part {
  float* sums;     // [rows, rank]
  float* maxima;   // [rows]
  float* weights;  // [rows]
};

MLA_OPT_DEVICE Part part_of_block(float* parts, int block, int rows, int rank) {
  float* start = parts + int64_t{block} * rows * (rank + 2);
  return {start, start + rows * rank, start + rows * rank + rows};
}

// The sink of a head is one more logit; returns what the sums have to be multiplied by: zero for a
// row that may attend to nothing.
template <class Element>
MLA_OPT_DEVICE float normalizer(const Arguments& a, int m, float maximum, float sum) {
  if (sum == 0.0f) return 0.0f;
  if (a.sink) {
    const float logit = to_float(static_cast<const Element*>(a.sink)[m % a.heads]);
    sum += exponential_of_2((logit - maximum) * 1.4426950408889634f);
  }
  return 1.0f / sum;
}

template <class C>
MLA_OPT_DEVICE void store_output(const Arguments& a, const Sequence& s, const Place& place,
                                 int first, const Softmax& softmax,
                                 const float (&sums)[C::kDimTiles][4]) {
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int m = first + 16 * place.row_group + place.lane / 4 + 8 * i;
    if (m >= row_count(a)) continue;
    const float factor = normalizer<typename C::Element>(a, m, softmax.maximum[i], softmax.sum[i]);
    char* row = static_cast<char*>(a.output) + 2 * row_offset(a, s, m, C::kRank) +
                2 * (place.part * C::kWarpDims + 2 * (place.lane % 4));
    MLA_OPT_UNROLL
    for (int tile = 0; tile < C::kDimTiles; ++tile)
      *reinterpret_cast<uint32_t*>(row + 16 * tile) =
          pack(typename C::Element{}, sums[tile][2 * i] * factor, sums[tile][2 * i + 1] * factor);
  }
}

template <class C>
MLA_OPT_DEVICE void store_part(const Arguments& a, const Place& place, const Softmax& softmax,
                               const float (&sums)[C::kDimTiles][4]) {
  const Part part = part_of_block(a.parts, block_index(), C::kTile.rows, C::kRank);
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = 16 * place.row_group + place.lane / 4 + 8 * i;
    if (place.part == 0 && place.lane % 4 == 0) {
      part.maxima[row] = softmax.maximum[i];
      part.weights[row] = softmax.sum[i];
    }
    float* start = part.sums + row * C::kRank + place.part * C::kWarpDims + 2 * (place.lane % 4);
    MLA_OPT_UNROLL
    for (int tile = 0; tile < C::kDimTiles; ++tile) {
      Pair pair{sums[tile][2 * i], sums[tile][2 * i + 1]};
      *reinterpret_cast<Pair*>(start + 8 * tile) = pair;
    }
  }
}

// ---- the whole ------------------------------------------------------------------------------------

// Writes the new rows of a sequence into its buffer, shared among the splits of the first row tile.
// Nobody reads them there in this launch: keys that are new are read from latent.
template <class C>
MLA_OPT_DEVICE void append(const Arguments& a, const Sequence& s, const Place& place, int split) {
  for (int i = split * C::kTile.warps + place.warp; i < a.new_len; i += a.splits * C::kTile.warps) {
    const LatentRow from = row_of_key<C::kRank, C::kRope>(a, s, s.past + i);
    const int64_t row = int64_t{s.index} * a.cache_len + s.past + i;
    const int width = 2 * (a.rope_cache ? C::kRank : C::kColumns);
    char* c_kv = static_cast<char*>(a.new_cache) + row * width;
    char* k_pe = a.rope_cache ? static_cast<char*>(a.new_rope_cache) + row * (2 * C::kRope)
                              : c_kv + 2 * C::kRank;
    for (int chunk = place.lane; chunk < C::kColumns / 8; chunk += 32) {
      const bool in_c_kv = chunk < C::kRank / 8;
      const int rest = chunk - C::kRank / 8;
      *reinterpret_cast<Chunk*>(in_c_kv ? c_kv + 16 * chunk : k_pe + 16 * rest) =
          *reinterpret_cast<const Chunk*>(in_c_kv ? from.c_kv + 16 * chunk : from.k_pe + 16 * rest);
    }
  }
}

template <class C>
MLA_OPT_DEVICE OwnRows own_rows(const Arguments& a, const Sequence& s, const Place& place,
                                int first) {
  OwnRows rows{};
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int m = first + 16 * place.row_group + place.lane / 4 + 8 * i;
    // Rows beyond the last see nothing, and nobody sees them.
    rows.visible[i] = m < row_count(a) ? visible_keys(a, s, m) : 0;
    if (a.bias_kind != BiasKind::kNone && m < row_count(a)) rows.bias[i] = bias_offset(a, s, m);
  }
  return rows;
}

template <class C>
MLA_OPT_DEVICE uint32_t stage_of(uint32_t shared, int tile) {
  return shared + C::kLayout.latent +
         tile % C::kTile.stages * (C::kTile.keys * C::kLayout.row_bytes);
}

// All keys of a block, tile by tile.
template <class C>
MLA_OPT_DEVICE void attend_to_keys(const Arguments& a, const Sequence& s, const Place& place,
                                   const Keys& keys, int first, uint32_t shared, Softmax& softmax,
                                   float (&sums)[C::kDimTiles][4]) {
  constexpr int stages = C::kTile.stages, size = C::kTile.keys;
  const OwnRows rows = own_rows<C>(a, s, place, first);
  // What the first row of the tile may see, all others may.
  const int visible_to_all = visible_keys(a, s, first);
  const int tiles = (keys.end - keys.first + size - 1) / size;
  const auto load = [&](int tile) {
    if (tile < tiles)
      load_keys<C>(a, s, place, keys.first + tile * size, keys.end, stage_of<C>(shared, tile));
    commit_copies();
  };
  load_query<C>(a, s, place, first, shared);
  MLA_OPT_UNROLL
  for (int tile = 0; tile < stages - 1; ++tile) load(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_copies<stages - 2>();
    // This tile is there for all, and all are done with the one before, whose place comes next.
    block_barrier();
    load(tile + stages - 1);
    const uint32_t latent = stage_of<C>(shared, tile);
    const int first_key = keys.first + tile * size;
    float scores[C::kKeyTiles][4];
    multiply_keys<C>(shared + 16 * place.row_group * C::kLayout.row_bytes,
                     latent + place.part * C::kWarpKeys * C::kLayout.row_bytes, place.lane, scores);
    MLA_OPT_UNROLL
    for (int i = 0; i < 4 * C::kKeyTiles; ++i) scores[i / 4][i % 4] *= a.scale;
    if (a.bias_kind != BiasKind::kNone || first_key + size > visible_to_all)
      mask<C>(a, place, rows, first_key, scores);
    weigh<C>(shared, place, scores, softmax, sums);
    multiply_values<C>(
        shared + C::kLayout.weights + 16 * place.row_group * C::kLayout.weight_row_bytes,
        latent + 2 * place.part * C::kWarpDims, place.lane, sums);
  }
  wait_for_copies<0>();
}

// One block: a tile of query rows of a sequence, and one split of its keys. Row tiles come first in
// the order of blocks, so that those who read the same keys run together.
template <class C>
MLA_OPT_DEVICE void attend(const Arguments& a) {
  const Place place = place_of_thread<C>();
  const int row_tile = block_index() % a.row_tiles, rest = block_index() / a.row_tiles;
  const int split = rest % a.splits;
  const Sequence s = sequence_of(a, rest / a.splits);
  const int first = row_tile * C::kTile.rows;
  const int last = first + C::kTile.rows < row_count(a) ? first + C::kTile.rows - 1
                                                        : row_count(a) - 1;
  const Keys keys = keys_of_split(visible_keys(a, s, last), split, a.splits, C::kTile.keys);
  const uint32_t shared = shared_start();
  if (a.appends && row_tile == 0) append<C>(a, s, place, split);

  Softmax softmax{{minus_infinity(), minus_infinity()}, {}};
  float sums[C::kDimTiles][4] = {};
  if (keys.first < keys.end)
    attend_to_keys<C>(a, s, place, keys, first, shared, softmax, sums);
  complete_sums<C>(shared, place, softmax);
  if (a.splits == 1)
    store_output<C>(a, s, place, first, softmax, sums);
  else
    store_part<C>(a, place, softmax, sums);
}

}  // namespace mla_opt::cuda
