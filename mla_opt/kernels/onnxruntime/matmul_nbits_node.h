// mla_opt::MatMulNBits on the CPU. See mla_opt/operator/matmul_nbits.py.
#pragma once

#include "node.h"

namespace mla_opt {

extern const ort::CustomOp kNBitsOperator;

}  // namespace mla_opt
