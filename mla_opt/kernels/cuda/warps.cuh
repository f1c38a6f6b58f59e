// The two products of a tile by warps (ldmatrix, mma.sync): on every architecture.
#pragma once

#include "config.cuh"

namespace mla_opt::cuda {

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

// The scores of a warp; before them, `load` starts the copies of a later tile.
template <class C, class Load>
MLA_OPT_DEVICE void scores_of_warp(uint32_t shared, uint32_t latent, const Place& place,
                                   const Load& load, float (&scores)[C::kKeyTiles][4]) {
  load();
  multiply_keys<C>(shared + 16 * place.row_group * C::kLayout.row_bytes,
                   latent + place.part * C::kWarpKeys * C::kLayout.row_bytes, place.lane, scores);
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

}  // namespace mla_opt::cuda
