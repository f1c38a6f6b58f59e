// A node of a model and the operator it is of: what is the same on every execution provider.
#pragma once

#include <initializer_list>
#include <vector>

#include "../cpu/latent_attention.h"
#include "abi.h"
#include "operands.h"

namespace mla_opt {

// Of ONNX Runtime; set when the library is registered.
extern const ort::Api* api;

// Returns to ONNX Runtime what went wrong.
#define RETURN_IF_ERROR(expression) \
  if (ort::Status* failed_status = (expression)) return failed_status

ort::Status* error(ort::ErrorCode code, const char* message);
ort::Status* failed(const mla_opt_failure& failure, const char* name = "LatentAttention");

// The first `most` inputs of a call; absent ones stay as they are.
ort::Status* read_inputs(const ort::KernelContext* context, Operand* operands, size_t most);

// The contract's outputs, no more and no less: a node that drops its new rows has another meaning.
ort::Status* make_outputs(ort::KernelContext* context, const OutputShapes& shapes, const char* name,
                          mla_opt_latent_attention& problem);

// Fills the problem of one call, and makes its outputs.
ort::Status* prepare(const Attributes& attributes, ort::KernelContext* context,
                     mla_opt_latent_attention& problem);

// The names that nodes have (mla_opt/operator/contract.py): a model calls each of its function bodies
// by another one, and all of them mean the same.
constexpr const char* kNames[] = {
    "LatentAttention",   "LatentAttention_2", "LatentAttention_3", "LatentAttention_4",
    "LatentAttention_5", "LatentAttention_6", "LatentAttention_7", "LatentAttention_8",
};

struct Operator : ort::CustomOp {
  const char* name;
  const char* provider;  // null: the CPU's
  int type;
  int cache_type;
};

// A mla_opt_parallel_for whose host is the context of a call.
void* parallel_for(void* context, void (*body)(void*, size_t), size_t count, void* state);

// Computes a node; `kernel` is its Attributes.
using Compute = ort::Status* (*)(void* kernel, ort::KernelContext* context);

// What the operator is made for: tensors of one type, and caches of one.
struct Types {
  int of_tensors;
  int of_caches;
};

// The operator on one provider (null: the CPU), once for each of its names and each of the types.
std::vector<Operator> make_operators(const char* provider, std::initializer_list<Types> types,
                                     Compute compute);

}  // namespace mla_opt
