// From shapes and addresses to a problem, with every check that needs no value.
#pragma once

#include <cstdint>

#include "../cpu/latent_attention.h"

namespace mla_opt {

// What a node was given: its inputs in the order of mla_opt/operator/contract.py.
enum Input { kQuery, kLatent, kCache, kPastLen, kBias, kSink, kRopeCache, kInputCount };
enum Output { kOutput, kNewCache, kNewRopeCache, kOutputCount };

constexpr int kMostDims = 8;

struct Operand {
  bool given = false;
  void* data = nullptr;
  int32_t type = 0;
  int64_t rank = 0;  // may be beyond kMostDims: then only the first dims are kept
  int64_t dims[kMostDims] = {};
};

struct Attributes {
  double scale;
  int64_t kv_lora_rank;
  int32_t causal;
};

struct Shape {
  int64_t dims[4];
};

// What the outputs have to look like; those that a problem has not are not to be made.
struct OutputShapes {
  bool has[kOutputCount];
  Shape shape[kOutputCount];
};

// Fills the problem but for its outputs, and says their shapes. False with the failure's message,
// which names the input and both numbers.
bool make_problem(const Operand (&inputs)[kInputCount], const Attributes& attributes,
                  mla_opt_latent_attention& problem, OutputShapes& outputs,
                  mla_opt_failure& failure);

}  // namespace mla_opt
