// Query rows and latent rows on their way into shared memory.
#pragma once

#include "config.cuh"

namespace mla_opt::cuda {

// Address of 16 bytes of a row, in a tile of `rows` rows.
template <class C>
MLA_OPT_DEVICE uint32_t chunk_address(uint32_t tile, int rows, int row, int chunk) {
  if (!C::kSwizzled) return tile + row * C::kLayout.row_bytes + 16 * chunk;
  return tile + chunk / 8 * rows * kSwizzledRow + row * kSwizzledRow + (chunk % 8 ^ row % 8) * 16;
}

// Starts copying one row into a tile, 16 bytes for each lane at a time.
template <class C>
MLA_OPT_DEVICE void copy_row(uint32_t tile, int rows, int row, const LatentRow& from, int lane,
                             bool is_real) {
  MLA_OPT_UNROLL
  for (int first = 0; first < C::kColumns / 8; first += 32) {
    const int chunk = first + lane;
    if (chunk >= C::kColumns / 8) break;
    const bool in_c_kv = chunk < C::kRank / 8;
    const char* source =
        in_c_kv ? from.c_kv + 16 * chunk : from.k_pe + 16 * (chunk - C::kRank / 8);
    copy_async(chunk_address<C>(tile, rows, row, chunk), source, is_real);
  }
}

template <class C>
MLA_OPT_DEVICE void load_query(const Arguments& a, const Sequence& s, const Place& place, int first,
                               uint32_t shared) {
  for (int row = place.warp; row < C::kTile.rows; row += C::kTile.warps) {
    const bool is_real = first + row < row_count(a);
    const int64_t offset = is_real ? row_offset(a, s, first + row, C::kColumns) : 0;
    const char* from = static_cast<const char*>(a.query) + 2 * offset;
    copy_row<C>(shared, C::kTile.rows, row, {from, from + 2 * C::kRank}, place.lane, is_real);
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
    copy_row<C>(stage, C::kTile.keys, row, from, place.lane, is_real);
  }
}

}  // namespace mla_opt::cuda
