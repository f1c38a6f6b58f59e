// Puts the parts of a split attention together: one block for each query row, four dims a thread,
// and up to eight groups of threads that take every eighth split.
#pragma once

#include "results.cuh"
#include "combine_shape.h"

namespace mla_opt::cuda {

// Block of the attention that has the part of a split.
MLA_OPT_DEVICE int block_of_split(const Arguments& a, int sequence, int row_tile, int split) {
  return (sequence * a.splits + split) * a.row_tiles + row_tile;
}

struct Quad {
  float value[4];
};

// The threads of the block share the splits, and find the greatest score of the row together.
MLA_OPT_DEVICE float greatest_of_splits(const Arguments& a, int sequence, int row_tile, int row,
                                        int rows, uint32_t shared) {
  float maximum = minus_infinity();
  for (int split = thread_index(); split < a.splits; split += thread_count()) {
    const int block = block_of_split(a, sequence, row_tile, split);
    maximum = greater(maximum, part_of_block(a.parts, block, rows, a.rank).maxima[row]);
  }
  MLA_OPT_UNROLL
  for (int lanes = 16; lanes > 0; lanes /= 2) maximum = greater(maximum, exchange_xor(maximum, lanes));
  if (thread_index() % 32 == 0) store_shared(shared + 4 * (thread_index() / 32), maximum);
  block_barrier();
  for (int warp = 0; warp < thread_count() / 32; ++warp)
    maximum = greater(maximum, load_shared(shared + 4 * warp));
  return maximum;
}

// Adds the parts of every groups-th split; returns the sum of their weights.
MLA_OPT_DEVICE float add_splits(const Arguments& a, int sequence, int row_tile, int row, int rows,
                                int group, int groups, int dim, float maximum, Quad& sums) {
  float weights = 0.0f;
  MLA_OPT_UNROLL_4
  for (int split = group; split < a.splits; split += groups) {
    const int block = block_of_split(a, sequence, row_tile, split);
    const Part part = part_of_block(a.parts, block, rows, a.rank);
    // A split without keys has written no sums: there are many in a buffer that is mostly empty.
    const float weight = part.weights[row];
    if (weight == 0.0f) continue;
    const float factor = rescaling(part.maxima[row], maximum);
    weights += weight * factor;
    const Chunk chunk = *reinterpret_cast<const Chunk*>(part.sums + row * a.rank + dim);
    MLA_OPT_UNROLL
    for (int i = 0; i < 4; ++i) sums.value[i] += float_of(chunk.words[i]) * factor;
  }
  return weights;
}

// The first group adds what the others found.
MLA_OPT_DEVICE void add_groups(const Arguments& a, int group, int groups, int dim, uint32_t shared,
                               Quad& sums, float& weights) {
  const uint32_t stride = 4 * (a.rank + 1);
  MLA_OPT_UNROLL
  for (int i = 0; i < 4; ++i)
    store_shared(shared + group * stride + 4 * (dim + i), sums.value[i]);
  if (dim == 0) store_shared(shared + group * stride + 4 * a.rank, weights);
  block_barrier();
  if (group != 0) return;
  for (int other = 1; other < groups; ++other) {
    MLA_OPT_UNROLL
    for (int i = 0; i < 4; ++i)
      sums.value[i] += load_shared(shared + other * stride + 4 * (dim + i));
    weights += load_shared(shared + other * stride + 4 * a.rank);
  }
}

template <class Element>
MLA_OPT_DEVICE void combine(const Arguments& a, int rows) {
  const int sequence = block_index() / row_count(a), m = block_index() % row_count(a);
  const int row_tile = m / rows, row = m % rows;
  const int threads = a.rank / 4, group = thread_index() / threads;
  const int groups = thread_count() / threads, dim = 4 * (thread_index() % threads);
  const uint32_t shared = shared_start();
  const float maximum = greatest_of_splits(a, sequence, row_tile, row, rows, shared);
  Quad sums{};
  float weights =
      add_splits(a, sequence, row_tile, row, rows, group, groups, dim, maximum, sums);
  if (groups > 1)
    add_groups(a, group, groups, dim, shared + kCombineMaximaBytes, sums, weights);
  if (group != 0) return;
  const float factor = normalizer<Element>(a, m, maximum, weights);
  const Sequence s{sequence, 0, 0};
  char* out = static_cast<char*>(a.output) + 2 * (row_offset(a, s, m, a.rank) + dim);
  const Words words{pack(Element{}, sums.value[0] * factor, sums.value[1] * factor),
                    pack(Element{}, sums.value[2] * factor, sums.value[3] * factor)};
  *reinterpret_cast<Words*>(out) = words;
}

}  // namespace mla_opt::cuda
