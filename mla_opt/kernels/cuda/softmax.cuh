// From scores to weights: masks, the greatest score of each row, exponentials. Warps that share rows
// agree through shared memory.
#pragma once

#include "config.cuh"

namespace mla_opt::cuda {

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
MLA_OPT_DEVICE uint32_t weight_address(uint32_t weights, int row, int key) {
  if (!C::kSwizzled) return weights + row * C::kLayout.weight_row_bytes + 2 * key;
  return weights + row * kSwizzledRow + (key / 8 ^ row % 8) * 16 + key % 8 * 2;
}

template <class C>
MLA_OPT_DEVICE void store_weights(uint32_t weights, const Place& place,
                                  const float (&scores)[C::kKeyTiles][4]) {
  const int row = 16 * place.row_group + place.lane / 4;
  MLA_OPT_UNROLL
  for (int tile = 0; tile < C::kKeyTiles; ++tile)
    MLA_OPT_UNROLL
    for (int i = 0; i < 2; ++i)
      store_shared(weight_address<C>(weights, row + 8 * i, key_in_tile<C>(place, tile, 0)),
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

// After this, all weights are there for who reads them: warps their own rows, warpgroups all.
template <class C>
MLA_OPT_DEVICE void weights_barrier(const Place& place) {
  if constexpr (C::kSwizzled) {
    show_to_async();
    block_barrier();
  } else {
    row_group_barrier<C>(place);
  }
}

// Scores become weights in shared memory; the sums so far follow the maximum.
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
  weights_barrier<C>(place);
}

}  // namespace mla_opt::cuda
