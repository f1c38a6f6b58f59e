// What a block leaves: output, or its part of a split attention.
#pragma once

#include "softmax.cuh"

namespace mla_opt::cuda {

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

// Without keys there are no sums to write, and none are read.
template <class C>
MLA_OPT_DEVICE void store_part(const Arguments& a, const Place& place, bool has_keys,
                               const Softmax& softmax, const float (&sums)[C::kDimTiles][4]) {
  const Part part = part_of_block(a.parts, block_index(), C::kTile.rows, C::kRank);
  MLA_OPT_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = 16 * place.row_group + place.lane / 4 + 8 * i;
    if (place.part == 0 && place.lane % 4 == 0) {
      part.maxima[row] = softmax.maximum[i];
      part.weights[row] = softmax.sum[i];
    }
    if (!has_keys) continue;
    float* start = part.sums + row * C::kRank + place.part * C::kWarpDims + 2 * (place.lane % 4);
    MLA_OPT_UNROLL
    for (int tile = 0; tile < C::kDimTiles; ++tile) {
      const Pair pair{sums[tile][2 * i], sums[tile][2 * i + 1]};
      *reinterpret_cast<Pair*>(start + 8 * tile) = pair;
    }
  }
}

}  // namespace mla_opt::cuda
