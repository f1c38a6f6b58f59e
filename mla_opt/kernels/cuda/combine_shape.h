// How many threads put parts together (combine.cuh).
#pragma once

#include <cstdint>

namespace mla_opt::cuda {

constexpr int kCombineGroups = 8;

// Groups of threads that take every group-th split: each gets at least four.
inline int combine_groups(int64_t splits) {
  const int64_t groups = (splits + 3) / 4;
  return groups < kCombineGroups ? static_cast<int>(groups) : kCombineGroups;
}

// A number for each warp; then the sums of each group, and of their weights.
constexpr int kCombineMaximaBytes = 4 * 32;
constexpr int combine_shared_bytes(int groups, int rank) {
  return kCombineMaximaBytes + 4 * groups * (rank + 1);
}

}  // namespace mla_opt::cuda
