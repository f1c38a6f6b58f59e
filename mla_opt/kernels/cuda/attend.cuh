// Flash attention over latent rows, on tensor cores: a tile of latent rows is read once into shared
// memory and serves as keys (all of it) and as values (its c_kv part) for all rows of a query tile.
//
//   for each tile of keys:   scores = query @ rows^T      warps share the keys
//                            weights = exp(scores - max)  exchanged through shared memory
//                            sums += weights @ c_kv       warps share the dims
//
// While one tile is computed with, copies of the next ones are under way (cp.async). The products are
// made by warps (warps.cuh), or on Hopper by warpgroups (warpgroups.cuh), whose tiles come in bulk
// where they can (bulk_loads.cuh); all else is the same.
#pragma once

#include "bulk_loads.cuh"
#include "loads.cuh"
#include "results.cuh"
#include "softmax.cuh"
#include "warpgroups.cuh"
#include "warps.cuh"

namespace mla_opt::cuda {

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
  return shared + C::kLayout.latent + tile % C::kTile.stages * C::kLayout.stage;
}

// Starts the copies of a tile of keys.
template <class C>
MLA_OPT_DEVICE void load_tile(const Arguments& a, const typename C::Maps& maps, const Sequence& s,
                              const Place& place, const Keys& keys, uint32_t shared, int tile) {
  const int first = keys.first + tile * C::kTile.keys;
  const uint32_t stage = stage_of<C>(shared, tile);
  if constexpr (C::kSwizzled) {
    if (comes_in_bulk<C>(maps, s, first, keys.end)) {
      const uint32_t barrier = barrier_of_stage<C>(shared, tile % C::kTile.stages);
      return load_keys_in_bulk<C>(a, maps, s, place, first, stage, barrier);
    }
  }
  load_keys<C>(a, s, place, first, keys.end, stage);
}

// Waits for a tile, and before the first one for the query. What other threads have copied of it is
// there after the next block barrier.
template <class C>
MLA_OPT_DEVICE void wait_for_tile(const typename C::Maps& maps, const Sequence& s, const Keys& keys,
                                  uint32_t shared, int tile, Phases& phases) {
  wait_for_copies<C::kTile.stages - 2>();
  if constexpr (C::kSwizzled) {
    // To the products, and to a later copy in bulk, which must not be overtaken by these.
    show_to_async();
    const int stage = tile % C::kTile.stages;
    if (comes_in_bulk<C>(maps, s, keys.first + tile * C::kTile.keys, keys.end))
      wait_for_bulk(barrier_of_stage<C>(shared, stage), stage, phases);
  }
}

// All keys of a block, tile by tile.
template <class C>
MLA_OPT_DEVICE void attend_to_keys(const Arguments& a, const typename C::Maps& maps,
                                   const Sequence& s, const Place& place, const Keys& keys,
                                   int first, uint32_t shared, Softmax& softmax,
                                   float (&sums)[C::kDimTiles][4]) {
  constexpr int stages = C::kTile.stages, size = C::kTile.keys;
  const OwnRows rows = own_rows<C>(a, s, place, first);
  // What the first row of the tile may see, all others may.
  const int visible_to_all = visible_keys(a, s, first);
  const int tiles = (keys.end - keys.first + size - 1) / size;
  const auto load = [&](int tile) {
    if (tile < tiles) load_tile<C>(a, maps, s, place, keys, shared, tile);
    commit_copies();
  };
  Phases phases{};
  if constexpr (C::kSwizzled) prepare_bulk_loads<C>(a, maps, place, shared);
  load_query<C>(a, s, place, first, shared);
  MLA_OPT_UNROLL
  for (int tile = 0; tile < stages - 1; ++tile) load(tile);
  // The barriers of the stages are there for all who wait at them.
  if constexpr (C::kSwizzled) block_barrier();
  for (int tile = 0; tile < tiles; ++tile) {
    wait_for_tile<C>(maps, s, keys, shared, tile, phases);
    // This tile is there for all, and all are done with the one before, whose place comes next.
    block_barrier();
    const uint32_t latent = stage_of<C>(shared, tile);
    const int first_key = keys.first + tile * size;
    const auto load_later = [&] { load(tile + stages - 1); };
    float scores[C::kKeyTiles][4] = {};
    if constexpr (C::kSwizzled)
      scores_of_warpgroup<C>(shared, latent, place, load_later, scores);
    else
      scores_of_warp<C>(shared, latent, place, load_later, scores);
    MLA_OPT_UNROLL
    for (int i = 0; i < 4 * C::kKeyTiles; ++i) scores[i / 4][i % 4] *= a.scale;
    if (a.bias_kind != BiasKind::kNone || first_key + size > visible_to_all)
      mask<C>(a, place, rows, first_key, scores);
    weigh<C>(shared, place, scores, softmax, sums);
    if constexpr (C::kSwizzled)
      add_values_of_warpgroup<C>(shared + C::kLayout.weights, latent, place, sums);
    else
      multiply_values<C>(
          shared + C::kLayout.weights + 16 * place.row_group * C::kLayout.weight_row_bytes,
          latent + 2 * place.part * C::kWarpDims, place.lane, sums);
  }
  wait_for_copies<0>();
}

// One block: a tile of query rows of a sequence, and one split of its keys. Row tiles come first in
// the order of blocks, so that those who read the same keys run together.
template <class C>
MLA_OPT_DEVICE void attend(const Arguments& a, const typename C::Maps& maps) {
  const Place place = place_of_thread<C>();
  const int row_tile = block_index() % a.row_tiles, rest = block_index() / a.row_tiles;
  const int split = rest % a.splits;
  const Sequence s = sequence_of(a, rest / a.splits);
  const int first = row_tile * C::kTile.rows;
  const int last = first + C::kTile.rows < row_count(a) ? first + C::kTile.rows - 1
                                                        : row_count(a) - 1;
  const Keys keys = keys_of_split(visible_keys(a, s, last), split, a.splits, C::kTile.keys);
  uint32_t shared = shared_start();
  if (C::kSwizzled)
    shared = (shared + kSwizzledAlignment - 1) / kSwizzledAlignment * kSwizzledAlignment;
  if (a.appends && row_tile == 0) append<C>(a, s, place, split);

  Softmax softmax{{minus_infinity(), minus_infinity()}, {}};
  float sums[C::kDimTiles][4] = {};
  const bool has_keys = keys.first < keys.end;
  if (has_keys)
    attend_to_keys<C>(a, maps, s, place, keys, first, shared, softmax, sums);
  complete_sums<C>(shared, place, softmax);
  if (a.splits == 1)
    store_output<C>(a, s, place, first, softmax, sums);
  else
    store_part<C>(a, place, has_keys, softmax, sums);
}

}  // namespace mla_opt::cuda
