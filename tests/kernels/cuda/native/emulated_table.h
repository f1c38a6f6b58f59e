// The emulated attentions by their dims, each pair of which is compiled in a file of its own.
#pragma once

#include "../../../../mla_opt/kernels/cuda/arguments.h"
#include "../../../../mla_opt/kernels/cuda/tensor_maps.h"

namespace mla_opt::cuda {

using AttendBlock = void (*)(const Arguments&, const TensorMaps&);

template <int kRank, int kRope>
AttendBlock attend_block_of(bool is_half, Width width, Memory memory);

template <>
AttendBlock attend_block_of<512, 64>(bool is_half, Width width, Memory memory);
template <>
AttendBlock attend_block_of<512, 0>(bool is_half, Width width, Memory memory);
template <>
AttendBlock attend_block_of<256, 32>(bool is_half, Width width, Memory memory);

}  // namespace mla_opt::cuda
