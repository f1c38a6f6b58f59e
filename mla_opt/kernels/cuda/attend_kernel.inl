// Kernels of one pair of dims, for both types and all widths. Included with MLA_OPT_RANK and
// MLA_OPT_ROPE defined, in a file of its own each, so that they are compiled side by side.
#include "attend.cuh"
#include "attend_table.h"

namespace mla_opt::cuda {
namespace {

#if defined(__CUDA_ARCH__)
constexpr int kArchitecture = __CUDA_ARCH__ / 10;
#else
constexpr int kArchitecture = 0;  // the host's half of the compilation, which runs no kernel
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWarpgroups = true;
#else
constexpr bool kHasWarpgroups = false;
#endif

// Of a width, what the architecture that is compiled for has.
template <class Element, Width kWidth>
struct Compiled {
  static constexpr Memory kMemory = memory_of(kArchitecture);
  static constexpr bool kFits = fits(kWidth, kMemory, MLA_OPT_RANK, MLA_OPT_ROPE) &&
                                (kWidth != Width::kWarpgroups || kHasWarpgroups);
  static constexpr int kThreads = tile_of(kWidth, kMemory).threads();
  using Shape = Config<Element, MLA_OPT_RANK, MLA_OPT_ROPE, kWidth, kMemory>;
};

template <class Element, Width kWidth>
__global__ void __launch_bounds__(Compiled<Element, kWidth>::kThreads, 1)
    attend_kernel(const __grid_constant__ Arguments arguments) {
  // Never planned where it does not fit.
  if constexpr (Compiled<Element, kWidth>::kFits)
    attend<typename Compiled<Element, kWidth>::Shape>(arguments, NoMaps{});
}

template <class Element>
__global__ void __launch_bounds__(Compiled<Element, Width::kWarpgroups>::kThreads, 1)
    attend_kernel_of_warpgroups(const __grid_constant__ Arguments arguments,
                                const __grid_constant__ TensorMaps maps) {
  if constexpr (Compiled<Element, Width::kWarpgroups>::kFits)
    attend<typename Compiled<Element, Width::kWarpgroups>::Shape>(arguments, maps);
}

}  // namespace

template <>
AttendKernel attend_kernel_of<MLA_OPT_RANK, MLA_OPT_ROPE>(bool is_half, Width width) {
  if (width == Width::kNarrow)
    return is_half ? attend_kernel<Half, Width::kNarrow> : attend_kernel<BFloat16, Width::kNarrow>;
  return is_half ? attend_kernel<Half, Width::kWide> : attend_kernel<BFloat16, Width::kWide>;
}

template <>
WarpgroupKernel warpgroup_kernel_of<MLA_OPT_RANK, MLA_OPT_ROPE>(bool is_half) {
  return is_half ? attend_kernel_of_warpgroups<Half> : attend_kernel_of_warpgroups<BFloat16>;
}

}  // namespace mla_opt::cuda
