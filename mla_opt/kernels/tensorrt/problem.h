// From TensorRT's descriptions of tensors to the problem that the kernels solve.
#pragma once

#include "../cuda/latent_attention_cuda.h"
#include "NvInferRuntime.h"
#include "fields.h"

namespace mla_opt::tensorrt {

// The operands of a node, in order. A node has the first four, five or all of them: the parser
// knows no absent ones.
enum Input { kQuery, kLatent, kCache, kPastLen, kBias, kSink, kMostInputs };
enum Output { kOutput, kNewCache, kOutputCount };
constexpr int32_t kLeastInputs = kPastLen + 1;

// One operand: its type, its dims with -1 for what is not known yet, and the largest they can be.
// TensorRT's bounds on computed dims are not tight, so nothing is to be told from two of them.
struct Operand {
  nvinfer1::DataType type;
  nvinfer1::Dims dims;
  nvinfer1::Dims largest;
};

// Fills in types and largest sizes, no addresses. False, with a line in the log, for operands whose
// dims do not fit together; -1 fits anything.
bool make_problem(const Fields& fields, const Operand* inputs, int32_t count,
                  mla_opt_latent_attention& problem);

}  // namespace mla_opt::tensorrt
