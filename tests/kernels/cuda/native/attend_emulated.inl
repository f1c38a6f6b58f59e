// The attention of one pair of dims on the emulated machine, for every memory there is.
#include "../../../../mla_opt/kernels/cuda/attend.cuh"
#include "emulated_table.h"

namespace mla_opt::cuda {
namespace {

// Warpgroups alone read the maps.
template <class C>
void attend_with(const Arguments& arguments, const TensorMaps& maps) {
  if constexpr (C::kSwizzled)
    attend<C>(arguments, maps);
  else
    attend<C>(arguments, NoMaps{});
}

template <class Element, Width kWidth, Memory kMemory>
AttendBlock attend_block() {
  if constexpr (fits(kWidth, kMemory, MLA_OPT_RANK, MLA_OPT_ROPE))
    return attend_with<Config<Element, MLA_OPT_RANK, MLA_OPT_ROPE, kWidth, kMemory>>;
  else
    return nullptr;
}

template <class Element, Width kWidth>
AttendBlock of_memory(Memory memory) {
  if (memory == Memory::kSmall) return attend_block<Element, kWidth, Memory::kSmall>();
  if (memory == Memory::kMedium) return attend_block<Element, kWidth, Memory::kMedium>();
  return attend_block<Element, kWidth, Memory::kLarge>();
}

}  // namespace

template <>
AttendBlock attend_block_of<MLA_OPT_RANK, MLA_OPT_ROPE>(bool is_half, Width width, Memory memory) {
  if (width == Width::kNarrow)
    return is_half ? of_memory<Half, Width::kNarrow>(memory)
                   : of_memory<BFloat16, Width::kNarrow>(memory);
  if (width == Width::kWide)
    return is_half ? of_memory<Half, Width::kWide>(memory)
                   : of_memory<BFloat16, Width::kWide>(memory);
  return is_half ? of_memory<Half, Width::kWarpgroups>(memory)
                 : of_memory<BFloat16, Width::kWarpgroups>(memory);
}

}  // namespace mla_opt::cuda
