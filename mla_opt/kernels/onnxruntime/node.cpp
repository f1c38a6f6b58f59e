#include "node.h"

#include <cstdio>
#include <new>

#include "../cpu/quantized_rows.h"

namespace mla_opt {

using namespace ort;

const Api* api = nullptr;

Status* error(ErrorCode code, const char* message) {
  return call<Status*>(api, kCreateStatus, static_cast<int>(code), message);
}

Status* failed(const mla_opt_failure& failure, const char* name) {
  char message[sizeof failure.message + 32];
  std::snprintf(message, sizeof message, "%s: %s", name, failure.message);
  return error(kInvalidArgument, message);
}

namespace {

// ---- a kernel: one node of a model ----------------------------------------------------------------

Status* create_kernel(const CustomOp*, const Api*, const KernelInfo* info, void** kernel) {
  float scale;
  int64_t rank, causal;
  RETURN_IF_ERROR(
      (call<Status*>(api, kKernelInfoGetAttributeFloat, info, "scale", &scale)));
  RETURN_IF_ERROR(
      (call<Status*>(api, kKernelInfoGetAttributeInt64, info, "kv_lora_rank", &rank)));
  RETURN_IF_ERROR((call<Status*>(api, kKernelInfoGetAttributeInt64, info, "causal", &causal)));
  *kernel = new (std::nothrow) Attributes{scale, rank, causal != 0};
  return *kernel ? nullptr : error(kFail, "LatentAttention: no memory for a kernel");
}

void destroy_kernel(void* kernel) { delete static_cast<Attributes*>(kernel); }

Status* read_shape(const TypeAndShape* shape, Operand& operand) {
  int type;
  size_t rank;
  RETURN_IF_ERROR((call<Status*>(api, kGetTensorElementType, shape, &type)));
  RETURN_IF_ERROR((call<Status*>(api, kGetDimensionsCount, shape, &rank)));
  operand.type = type;
  operand.rank = static_cast<int64_t>(rank);
  if (rank > kMostDims) return nullptr;
  return call<Status*>(api, kGetDimensions, shape, &operand.dims[0], rank);
}

// The address of a tensor that is there. One without elements may have none, and to the kernel that
// would say that it is not given: a cache in two parts would be taken for a packed one.
Status* address(Value* value, void** data) {
  alignas(64) static char nowhere[64];
  RETURN_IF_ERROR((call<Status*>(api, kGetTensorMutableData, value, data)));
  if (!*data) *data = nowhere;
  return nullptr;
}

Status* read_operand(const Value* value, Operand& operand) {
  TypeAndShape* shape;
  RETURN_IF_ERROR((call<Status*>(api, kGetTensorTypeAndShape, value, &shape)));
  Status* status = read_shape(shape, operand);
  call<void>(api, kReleaseTensorTypeAndShape, shape);
  RETURN_IF_ERROR(status);
  operand.given = true;
  return address(const_cast<Value*>(value), &operand.data);
}

Status* make_output(KernelContext* context, Output output, const OutputShapes& shapes,
                    void** data) {
  Value* value = nullptr;
  RETURN_IF_ERROR((call<Status*>(api, kKernelContextGetOutput, context,
                                 static_cast<size_t>(output), &shapes.shape[output].dims[0],
                                 size_t{4}, &value)));
  return value ? address(value, data) : nullptr;
}

// ---- the operator, once for each pair of types ----------------------------------------------------

int input_type(const CustomOp* op, size_t i) {
  const auto* self = static_cast<const Operator*>(op);
  // A bias may be boolean or of the query's type: that is checked when it comes.
  if (i == kBias) return kAnyType;
  if (i == kPastLen) return kInt32;
  if (i == kCache) return self->cache_type;
  return i == kRopeCache ? type_beside(self->cache_type) : self->type;
}

int output_type(const CustomOp* op, size_t i) {
  const auto* self = static_cast<const Operator*>(op);
  if (i == kOutput) return self->type;
  return i == kNewCache ? self->cache_type : type_beside(self->cache_type);
}

// Buffers may be given back as they came. ONNX Runtime does so where nobody else reads the input
// and both have the same size, which a growing cache's never have.
size_t may_be_in_place(int** inputs, int** outputs) {
  static int from[] = {kCache, kRopeCache};
  static int to[] = {kNewCache, kNewRopeCache};
  *inputs = from;
  *outputs = to;
  return 2;
}

Operator make_operator(const char* name, const char* provider, Types types, Compute compute) {
  Operator op{};
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* self) { return static_cast<const Operator*>(self)->name; };
  op.GetExecutionProviderType = [](const CustomOp* self) {
    return static_cast<const Operator*>(self)->provider;
  };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kInputCount; };
  op.GetOutputType = output_type;
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return kOutputCount; };
  op.KernelDestroy = destroy_kernel;
  op.GetInputCharacteristic = [](const CustomOp*, size_t i) -> int {
    return i == kQuery ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t i) -> int {
    return i == kOutput ? kRequired : kOptional;
  };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.CreateKernelV2 = create_kernel;
  op.KernelComputeV2 = compute;
  // What ONNX Runtime compares these with is the version of the schema that it makes of this very
  // operator, not the one that a model imports: a contract of another meaning needs another name.
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  op.GetMayInplace = may_be_in_place;
  op.ReleaseMayInplace = [](int*, int*) {};
  op.name = name;
  op.provider = provider;
  op.type = types.of_tensors;
  op.cache_type = types.of_caches;
  return op;
}

}  // namespace

Status* read_inputs(const KernelContext* context, Operand* operands, size_t most) {
  size_t count;
  RETURN_IF_ERROR((call<Status*>(api, kKernelContextGetInputCount, context, &count)));
  for (size_t i = 0; i < count && i < most; ++i) {
    const Value* value = nullptr;
    RETURN_IF_ERROR((call<Status*>(api, kKernelContextGetInput, context, i, &value)));
    if (value) RETURN_IF_ERROR(read_operand(value, operands[i]));
  }
  return nullptr;
}

Status* make_outputs(KernelContext* context, const OutputShapes& shapes, const char* name,
                     mla_opt_latent_attention& problem) {
  size_t count;
  void* data[kOutputCount] = {};
  RETURN_IF_ERROR((call<Status*>(api, kKernelContextGetOutputCount, context, &count)));
  for (size_t i = 0; i < kOutputCount; ++i) {
    if (!shapes.has[i]) continue;
    if (i < count)
      RETURN_IF_ERROR(make_output(context, static_cast<Output>(i), shapes, &data[i]));
    if (!data[i])
      return failed({"latent and cache are given, so the node must have the outputs that return the "
                     "cache",
                     nullptr},
                    name);
  }
  problem.output = data[kOutput];
  problem.new_cache = data[kNewCache];
  problem.new_rope_cache = data[kNewRopeCache];
  return nullptr;
}

void* parallel_for(void* context, void (*body)(void*, size_t), size_t count, void* state) {
  // Without batches every task is handed out by itself, to whichever thread is free.
  const size_t batches = 0;
  return call<Status*>(api, kKernelContextParallelFor, static_cast<const KernelContext*>(context),
                       body, count, batches, state);
}

Status* prepare(const Attributes& attributes, KernelContext* context,
                mla_opt_latent_attention& problem) {
  Operand operands[kInputCount];
  OutputShapes shapes;
  mla_opt_failure failure;
  RETURN_IF_ERROR(read_inputs(context, operands, kInputCount));
  if (!make_problem(operands, attributes, problem, shapes, failure)) return failed(failure);
  return make_outputs(context, shapes, "LatentAttention", problem);
}

std::vector<Operator> make_operators(const char* provider, std::initializer_list<Types> types,
                                     Compute compute) {
  std::vector<Operator> made;
  for (const char* name : kNames)
    for (const Types each : types) made.push_back(make_operator(name, provider, each, compute));
  return made;
}

}  // namespace mla_opt
