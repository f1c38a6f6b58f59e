// The two products of a tile on warpgroups (wgmma, code for 90a): four warps multiply together, both
// factors straight from shared memory, and go on while the products are made.
//
// Two warpgroups have the same 64 query rows: of the scores each has half the keys, of the output
// half the dims.
#pragma once

#include "config.cuh"

namespace mla_opt::cuda {

// What wgmma is told of a matrix in shared memory whose rows are blocks of 128 bytes, 16-byte
// columns swizzled. Bytes; addresses count in 16 of them. Rows in eights are `stride` apart.
// For a factor along whose rows is summed (query, keys, weights) `leading` has no meaning.
MLA_OPT_DEVICE uint64_t matrix_descriptor(uint32_t address, int leading, int stride) {
  constexpr uint64_t swizzle_of_128_bytes = uint64_t{1} << 62;
  return swizzle_of_128_bytes | uint64_t(stride / 16) << 32 | uint64_t(leading / 16) << 16 |
         uint64_t(address / 16);
}

constexpr int kEightRows = 8 * kSwizzledRow;

// scores [64, 32] = query [64, columns] @ rows [32, columns]^T; `load` starts copies meanwhile.
template <class C, class Load>
MLA_OPT_DEVICE void scores_of_warpgroup(uint32_t query, uint32_t latent, const Place& place,
                                        const Load& load, float (&scores)[C::kKeyTiles][4]) {
  const uint32_t rows = latent + place.part * C::kWarpKeys * kSwizzledRow;
  begin_products();
  MLA_OPT_UNROLL
  for (int column = 0; column < C::kColumns; column += 16) {
    const int block = column / 64, within = column % 64 * 2;
    multiply_keys_async(
        typename C::Element{}, scores,
        matrix_descriptor(query + block * C::kTile.rows * kSwizzledRow + within, 16, kEightRows),
        matrix_descriptor(rows + block * C::kTile.keys * kSwizzledRow + within, 16, kEightRows));
  }
  commit_products();
  load();
  wait_for_products<0>();
}

// sums [64, 256] += weights [64, keys] @ c_kv [keys, 256].
template <class C>
MLA_OPT_DEVICE void add_values_of_warpgroup(uint32_t weights, uint32_t latent, const Place& place,
                                            float (&sums)[C::kDimTiles][4]) {
  constexpr int block = C::kTile.keys * kSwizzledRow;
  const uint32_t values = latent + place.part * (C::kWarpDims / 64) * block;
  begin_products();
  MLA_OPT_UNROLL
  for (int key = 0; key < C::kTile.keys; key += 16)
    multiply_values_async(typename C::Element{}, sums,
                          matrix_descriptor(weights + 2 * key, 16, kEightRows),
                          matrix_descriptor(values + key * kSwizzledRow, block, kEightRows));
  commit_products();
  wait_for_products<0>();
}

}  // namespace mla_opt::cuda
