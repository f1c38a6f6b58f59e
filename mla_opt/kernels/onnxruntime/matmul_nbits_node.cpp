#include "matmul_nbits_node.h"

#include <algorithm>
#include <new>

#include "matmul_nbits_operands.h"

namespace mla_opt {

using namespace ort;

namespace {

constexpr const char* kNBitsName = "MatMulNBits";

Status* create(const CustomOp*, const Api*, const KernelInfo* info, void** kernel) {
  NBitsAttributes attributes{};
  const struct {
    const char* name;
    int64_t* number;
  } numbers[] = {
      {"K", &attributes.inner},
      {"N", &attributes.columns},
      {"bits", &attributes.bits},
      {"block_size", &attributes.block_size},
  };
  for (const auto& each : numbers)
    RETURN_IF_ERROR(
        (call<Status*>(api, kKernelInfoGetAttributeInt64, info, each.name, each.number)));
  *kernel = new (std::nothrow) NBitsAttributes(attributes);
  return *kernel ? nullptr : error(kFail, "MatMulNBits: no memory for a kernel");
}

Status* make_product(KernelContext* context, const Operand& a, int64_t columns, float** data) {
  int64_t dims[kMostDims];
  std::copy(a.dims, a.dims + a.rank, dims);
  dims[a.rank - 1] = columns;
  Value* value = nullptr;
  RETURN_IF_ERROR((call<Status*>(api, kKernelContextGetOutput, context, size_t{0}, &dims[0],
                                 static_cast<size_t>(a.rank), &value)));
  return call<Status*>(api, kGetTensorMutableData, value, reinterpret_cast<void**>(data));
}

Status* compute(void* kernel, KernelContext* context) {
  const auto& attributes = *static_cast<const NBitsAttributes*>(kernel);
  Operand operands[kNBitsInputCount];
  mla_opt_failure failure{};
  mla_opt_matmul_nbits problem;
  RETURN_IF_ERROR(read_inputs(context, operands, kNBitsInputCount));
  if (!make_nbits_problem(operands, attributes, problem, failure)) return failed(failure, kNBitsName);
  RETURN_IF_ERROR(make_product(context, operands[kA], attributes.columns, &problem.y));
  if (mla_opt_matmul_nbits_run(&problem, parallel_for, context, &failure) == 0) return nullptr;
  return failure.host_error ? static_cast<Status*>(failure.host_error) : failed(failure, kNBitsName);
}

CustomOp make_nbits_operator() {
  CustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const CustomOp*) { return kNBitsName; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  // Types are checked when they come.
  op.GetInputType = [](const CustomOp*, size_t) -> int { return kAnyType; };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kNBitsInputCount; };
  op.GetOutputType = [](const CustomOp*, size_t) -> int { return MLA_OPT_FLOAT32; };
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<NBitsAttributes*>(kernel); };
  op.GetInputCharacteristic = [](const CustomOp*, size_t i) -> int {
    return i <= kScales ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) -> int { return kRequired; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

}  // namespace

const CustomOp kNBitsOperator = make_nbits_operator();

}  // namespace mla_opt
