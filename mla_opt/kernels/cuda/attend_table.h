// The kernels by their dims, each pair of which is compiled in a file of its own.
#pragma once

#include "arguments.h"
#include "tensor_maps.h"

namespace mla_opt::cuda {

// Narrow and wide.
using AttendKernel = void (*)(Arguments);
using WarpgroupKernel = void (*)(Arguments, TensorMaps);

template <int kRank, int kRope>
AttendKernel attend_kernel_of(bool is_half, Width width);

template <int kRank, int kRope>
WarpgroupKernel warpgroup_kernel_of(bool is_half);

template <>
AttendKernel attend_kernel_of<512, 64>(bool is_half, Width width);
template <>
AttendKernel attend_kernel_of<512, 0>(bool is_half, Width width);
template <>
AttendKernel attend_kernel_of<256, 32>(bool is_half, Width width);
template <>
WarpgroupKernel warpgroup_kernel_of<512, 64>(bool is_half);
template <>
WarpgroupKernel warpgroup_kernel_of<512, 0>(bool is_half);
template <>
WarpgroupKernel warpgroup_kernel_of<256, 32>(bool is_half);

inline AttendKernel attend_kernel_for(const Problem& p, Width width) {
  const bool is_half = p.type == MLA_OPT_FLOAT16;
  if (p.kv_lora_rank == 256) return attend_kernel_of<256, 32>(is_half, width);
  return p.rope_dim == 0 ? attend_kernel_of<512, 0>(is_half, width)
                         : attend_kernel_of<512, 64>(is_half, width);
}

inline WarpgroupKernel warpgroup_kernel_for(const Problem& p) {
  const bool is_half = p.type == MLA_OPT_FLOAT16;
  if (p.kv_lora_rank == 256) return warpgroup_kernel_of<256, 32>(is_half);
  return p.rope_dim == 0 ? warpgroup_kernel_of<512, 0>(is_half)
                         : warpgroup_kernel_of<512, 64>(is_half);
}

}  // namespace mla_opt::cuda
