// The contract (mla_opt/operator/contract.py) once more, in plain loops over doubles.
#pragma once

#include "problems.h"

struct Expected {
  std::vector<double> output;
  Tensor new_cache, new_rope_cache;  // bit for bit; not given where the contract has none
};

Expected expected_of(const Case& legal);
