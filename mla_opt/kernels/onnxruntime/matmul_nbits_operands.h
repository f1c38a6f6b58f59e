// From shapes and addresses to a product with a matrix of few bits, with every check that needs no
// value.
#pragma once

#include "../cpu/matmul_nbits.h"
#include "operands.h"

namespace mla_opt {

// What a node was given, in the order of mla_opt/operator/matmul_nbits.py.
enum NBitsInput { kA, kB, kScales, kZeroPoints, kGroupIndex, kProductBias, kNBitsInputCount };

struct NBitsAttributes {
  int64_t inner, columns;  // K, N
  int64_t bits, block_size;
};

// Fills the problem but for its output, whose shape is that of `a` but for the last axis. False with
// the failure's message, which names the input and both numbers.
bool make_nbits_problem(const Operand (&inputs)[kNBitsInputCount], const NBitsAttributes& attributes,
                        mla_opt_matmul_nbits& problem, mla_opt_failure& failure);

}  // namespace mla_opt
