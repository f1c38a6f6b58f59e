// mla_opt::PrefillCrossover: from how many new tokens on a prompt is better expanded, on this machine.
// See mla_opt/operator/crossover.py.
#pragma once

#include "node.h"

namespace mla_opt {

extern const ort::CustomOp kCrossoverOperator;

}  // namespace mla_opt
