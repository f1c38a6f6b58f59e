// A kernel's sizes, and what each thread of a block has of them.
#pragma once

#include <type_traits>

#include "rows.cuh"
#include "tensor_maps.h"

namespace mla_opt::cuda {

template <class Element_, int kRank_, int kRope_, Width kWidth_, Memory kMemory_>
struct Config {
  using Element = Element_;
  static constexpr int kRank = kRank_, kRope = kRope_, kColumns = kRank + kRope;
  static constexpr Tile kTile = tile_of(kWidth_, kMemory_);
  static constexpr Layout kLayout = layout_of(kWidth_, kTile, kRank, kRope);
  static constexpr bool kSwizzled = kWidth_ == Width::kWarpgroups;
  using Maps = std::conditional_t<kSwizzled, TensorMaps, NoMaps>;
  static constexpr int kWarpsPerRows = kTile.warps_per_rows();
  static constexpr int kWarpKeys = kTile.keys / kWarpsPerRows;  // of the scores, for one warp
  static constexpr int kWarpDims = kRank / kWarpsPerRows;       // of the output, for one warp
  static constexpr int kKeyTiles = kWarpKeys / 8, kDimTiles = kWarpDims / 8;
  // Sums of one score that do not wait for each other.
  static constexpr int kChains = kKeyTiles == 1 ? 2 : 1;

  static_assert(kSwizzled || kWarpKeys == 8 || kWarpKeys == 16, "one load of four matrices");
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
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  // The four warps of a warpgroup have 16 rows each.
  if (C::kSwizzled) return {warp, lane, warp % 4, warp / 4};
  return {warp, lane, warp / C::kWarpsPerRows, warp % C::kWarpsPerRows};
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

}  // namespace mla_opt::cuda
