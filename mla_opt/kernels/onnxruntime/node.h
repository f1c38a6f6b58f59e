// A node of a model and the operator it is of: what is the same on every execution provider.
#pragma once

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
ort::Status* failed(const mla_opt_failure& failure);

// Fills the problem of one call, and makes its outputs.
ort::Status* prepare(const Attributes& attributes, ort::KernelContext* context,
                     mla_opt_latent_attention& problem);

struct Operator : ort::CustomOp {
  const char* provider;  // null: the CPU's
  int type;
  int cache_type;
};

// Computes a node; `kernel` is its Attributes.
using Compute = ort::Status* (*)(void* kernel, ort::KernelContext* context);

// The operator for tensors of one type, and caches of one, on one provider.
Operator make_operator(const char* provider, int type, int cache_type, Compute compute);

}  // namespace mla_opt
