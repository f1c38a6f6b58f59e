// From shapes and addresses to a problem of multi-head latent attention, with every check that needs
// no value.
#pragma once

#include "../cpu/multi_head.h"
#include "operands.h"

namespace mla_opt {

// What a node was given, in the order of mla_opt/operator/multi_head.py.
enum MultiHeadInput {
  kHeadQuery,
  kKvB,
  kHeadLatent,
  kHeadCache,
  kHeadPastLen,
  kHeadBias,
  kHeadSink,
  kHeadRopeCache,
  kKvBScales,
  kKvBZeroPoints,
  kKvBFactors,
  kMultiHeadInputCount
};

struct MultiHeadAttributes {
  Attributes attention;
  int64_t nope_dim, v_dim;
  int64_t bits, block_size, block_rows;
  int32_t form;
};

// As make_problem.
bool make_multi_head_problem(const Operand (&inputs)[kMultiHeadInputCount],
                             const MultiHeadAttributes& attributes,
                             mla_opt_multi_head_latent_attention& problem, OutputShapes& outputs,
                             mla_opt_failure& failure);

}  // namespace mla_opt
