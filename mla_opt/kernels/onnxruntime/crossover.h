// mla_opt::PrefillCrossover: from how many new tokens on a prompt is better expanded, on this machine.
// See mla_opt/operator/crossover.py.
#pragma once

#include "node.h"

namespace mla_opt {

// Dims of one head, as mla_opt/geometry.py names them.
struct HeadDims {
  int64_t kv_lora_rank;
  int64_t qk_nope_head_dim;
  int64_t qk_rope_head_dim;
  int64_t v_head_dim;
};

// Where the kernel's products are so many times as fast as those of the runtime.
int64_t crossover(const HeadDims& dims, double advantage);

extern const ort::CustomOp kCrossoverOperator;

}  // namespace mla_opt
