// The kernels by their dims, each pair of which is compiled in a file of its own.
#pragma once

#include "arguments.h"

namespace mla_opt::cuda {

using AttendKernel = void (*)(Arguments);

template <int kRank, int kRope>
AttendKernel attend_kernel_of(bool is_half, Width width);

template <>
AttendKernel attend_kernel_of<512, 64>(bool is_half, Width width);
template <>
AttendKernel attend_kernel_of<512, 0>(bool is_half, Width width);
template <>
AttendKernel attend_kernel_of<256, 32>(bool is_half, Width width);

inline AttendKernel attend_kernel_for(const Problem& p, Width width) {
  const bool is_half = p.type == MLA_OPT_FLOAT16;
  if (p.kv_lora_rank == 256) return attend_kernel_of<256, 32>(is_half, width);
  return p.rope_dim == 0 ? attend_kernel_of<512, 0>(is_half, width)
                         : attend_kernel_of<512, 64>(is_half, width);
}

}  // namespace mla_opt::cuda
