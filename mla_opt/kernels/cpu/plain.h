// Attention in float64, row by row: for models that are kept in it, which nobody does for speed.
#pragma once

#include <cstdint>

#include "problem.h"
#include "tier.h"

namespace mla_opt {

// Computes one output row. False when there is no memory.
bool attend_plain(const Problem& problem, int64_t sequence, int64_t row, Scratch& scratch);

}  // namespace mla_opt
