// mla_opt::MultiHeadLatentAttention on the CPU. See mla_opt/operator/multi_head.py.
#pragma once

#include <vector>

#include "node.h"

namespace mla_opt {

struct MultiHeadOperator : ort::CustomOp {
  const char* name;
  int type;
  int cache_type;
};

extern const std::vector<MultiHeadOperator> kMultiHeadOperators;

}  // namespace mla_opt
