// What can be refused before anything is started.
#pragma once

#include "plan.h"

namespace mla_opt::cuda {

// Fills failure with a message, printf's way, and returns false.
__attribute__((format(printf, 2, 3))) bool refuse(mla_opt_failure& failure, const char* format, ...);

// Whether there is a kernel for the types and sizes of a problem.
bool check_shapes(const Problem& problem, mla_opt_failure& failure);

// Fills failure and returns false for a problem that cannot be started. Reads no address.
bool check(const Problem& problem, mla_opt_failure& failure);

}  // namespace mla_opt::cuda
