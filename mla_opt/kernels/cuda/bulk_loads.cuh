// Keys by the tensor memory accelerator (TMA, code for 90a): one thread asks for a whole tile, in
// boxes of [keys, 64 columns]; they come swizzled as wgmma wants them, and the barrier of their stage
// (mbarrier) counts the bytes. Nobody else spends an instruction or a register on addresses.
//
// So come tiles that lie in one tensor whole. One with the seam between cache and new rows in it,
// or with the end of the keys, is copied row by row (loads.cuh): what lies beyond the end must become
// zeros, and a box brings whatever is there.
#pragma once

#include "config.cuh"

namespace mla_opt::cuda {

template <class C>
MLA_OPT_DEVICE uint32_t barrier_of_stage(uint32_t shared, int stage) {
  return shared + C::kLayout.barriers + stage * kBarrierBytes;
}

// One thread makes the barriers, and asks for all tiles. Others may wait at them once a block
// barrier is passed.
template <class C>
MLA_OPT_DEVICE void prepare_bulk_loads(const Arguments& a, const TensorMaps& maps,
                                       const Place& place, uint32_t shared) {
  if (place.warp != 0) return;
  if (!elected()) return;
  MLA_OPT_UNROLL
  for (int stage = 0; stage < C::kTile.stages; ++stage)
    make_barrier(barrier_of_stage<C>(shared, stage), 1);
  show_barriers();
  if (maps.has_cache) prefetch_map(&maps.cache);
  if (maps.has_cache && a.rope_cache) prefetch_map(&maps.rope_cache);
  if (maps.has_latent) prefetch_map(&maps.latent);
}

// Whether a tile of keys, of which the block takes those before `end`, comes by TMA. The same for
// all threads.
template <class C>
MLA_OPT_DEVICE bool comes_in_bulk(const TensorMaps& maps, const Sequence& s, int first, int end) {
  const int next = first + C::kTile.keys;
  if (next > end) return false;
  return next <= s.past ? maps.has_cache : first >= s.past && maps.has_latent;
}

// Who calls has passed a block barrier since the stage was last read. One condition of both would
// hide from the compiler that a single thread goes on: each copy would become a loop over threads.
template <class C>
MLA_OPT_DEVICE void load_keys_in_bulk(const Arguments& a, const TensorMaps& maps, const Sequence& s,
                                      const Place& place, int first, uint32_t to,
                                      uint32_t barrier) {
  if (place.warp != 0) return;
  if (!elected()) return;
  const bool is_cached = first < s.past, is_split = is_cached && a.rope_cache;
  const int row =
      is_cached ? s.index * a.cache_len + first : s.index * a.new_len + first - s.past;
  const TensorMap* c_kv = is_cached ? &maps.cache : &maps.latent;
  const TensorMap* k_pe = is_split ? &maps.rope_cache : c_kv;
  const int k_pe_column = is_split ? 0 : C::kRank;
  expect_bytes(barrier, C::kLayout.stage);
  MLA_OPT_UNROLL
  for (int column = 0; column < C::kColumns; column += kBoxColumns) {
    const bool in_c_kv = column < C::kRank;
    copy_box(to + column / kBoxColumns * C::kTile.keys * kSwizzledRow, in_c_kv ? c_kv : k_pe,
             in_c_kv ? column : k_pe_column + column - C::kRank, row, barrier);
  }
}

// The parity of the phase that the barrier of each stage is in, a bit each. A phase is a tile that
// came in bulk: what is copied row by row into the same stage passes the barrier by.
struct Phases {
  uint32_t parities;
};

MLA_OPT_DEVICE void wait_for_bulk(uint32_t barrier, int stage, Phases& phases) {
  wait_for_phase(barrier, phases.parities >> stage & 1);
  phases.parities ^= 1u << stage;
}

}  // namespace mla_opt::cuda
