#include "multi_head_node.h"

#include <cstring>
#include <new>

#include "../cpu/quantized_rows.h"
#include "multi_head_operands.h"

namespace mla_opt {

using namespace ort;

namespace {

constexpr const char* kHeadName = "MultiHeadLatentAttention";

constexpr const char* kMultiHeadNames[] = {
    "MultiHeadLatentAttention",   "MultiHeadLatentAttention_2", "MultiHeadLatentAttention_3",
    "MultiHeadLatentAttention_4", "MultiHeadLatentAttention_5", "MultiHeadLatentAttention_6",
    "MultiHeadLatentAttention_7", "MultiHeadLatentAttention_8",
};

// ---- a kernel: one node of a model ----------------------------------------------------------------

Status* read_form(const KernelInfo* info, int32_t& form) {
  constexpr const char* names[] = {"auto", "absorbed", "expanded"};
  char text[16] = {};
  size_t size = sizeof text;
  RETURN_IF_ERROR(
      (call<Status*>(api, kKernelInfoGetAttributeString, info, "form", &text[0], &size)));
  for (form = MLA_OPT_AUTO; form <= MLA_OPT_EXPANDED; ++form)
    if (std::strcmp(text, names[form]) == 0) return nullptr;
  return failed({"form is none of auto, absorbed and expanded", nullptr}, kHeadName);
}

Status* read_numbers(const KernelInfo* info, MultiHeadAttributes& a) {
  int64_t causal;
  const struct {
    const char* name;
    int64_t* number;
  } numbers[] = {
      {"kv_lora_rank", &a.attention.kv_lora_rank},
      {"qk_nope_head_dim", &a.nope_dim},
      {"v_head_dim", &a.v_dim},
      {"bits", &a.bits},
      {"block_size", &a.block_size},
      {"block_rows", &a.block_rows},
      {"causal", &causal},
  };
  for (const auto& each : numbers)
    RETURN_IF_ERROR(
        (call<Status*>(api, kKernelInfoGetAttributeInt64, info, each.name, each.number)));
  a.attention.causal = causal != 0;
  return nullptr;
}

Status* create(const CustomOp*, const Api*, const KernelInfo* info, void** kernel) {
  MultiHeadAttributes attributes{};
  float scale;
  RETURN_IF_ERROR((call<Status*>(api, kKernelInfoGetAttributeFloat, info, "scale", &scale)));
  attributes.attention.scale = scale;
  RETURN_IF_ERROR(read_numbers(info, attributes));
  RETURN_IF_ERROR(read_form(info, attributes.form));
  *kernel = new (std::nothrow) MultiHeadAttributes(attributes);
  return *kernel ? nullptr : error(kFail, "MultiHeadLatentAttention: no memory for a kernel");
}

Status* compute(void* kernel, KernelContext* context) {
  Operand operands[kMultiHeadInputCount];
  OutputShapes shapes;
  mla_opt_failure failure{};
  mla_opt_multi_head_latent_attention problem;
  RETURN_IF_ERROR(read_inputs(context, operands, kMultiHeadInputCount));
  if (!make_multi_head_problem(operands, *static_cast<const MultiHeadAttributes*>(kernel), problem,
                               shapes, failure))
    return failed(failure, kHeadName);
  RETURN_IF_ERROR(make_outputs(context, shapes, kHeadName, problem.attention));
  if (mla_opt_multi_head_latent_attention_run(&problem, parallel_for, context, &failure) == 0)
    return nullptr;
  return failure.host_error ? static_cast<Status*>(failure.host_error) : failed(failure, kHeadName);
}

// ---- the operator, once for each pair of types ----------------------------------------------------

int input_type(const CustomOp* op, size_t i) {
  const auto* self = static_cast<const MultiHeadOperator*>(op);
  switch (i) {
    // Of several types, which are checked when they come.
    case kKvB:
    case kKvBScales:
    case kKvBZeroPoints:
    case kHeadBias:
      return kAnyType;
    case kHeadPastLen:
      return kInt32;
    case kKvBFactors:
      return MLA_OPT_FLOAT32;
    case kHeadCache:
      return self->cache_type;
    case kHeadRopeCache:
      return type_beside(self->cache_type);
    default:
      return self->type;
  }
}

int output_type(const CustomOp* op, size_t i) {
  const auto* self = static_cast<const MultiHeadOperator*>(op);
  if (i == kOutput) return self->type;
  return i == kNewCache ? self->cache_type : type_beside(self->cache_type);
}

// As LatentAttention's.
size_t may_be_in_place(int** inputs, int** outputs) {
  static int from[] = {kHeadCache, kHeadRopeCache};
  static int to[] = {kNewCache, kNewRopeCache};
  *inputs = from;
  *outputs = to;
  return 2;
}

MultiHeadOperator make_operator(const char* name, Types types) {
  MultiHeadOperator op{};
  op.version = kApiVersion;
  op.GetName = [](const CustomOp* self) {
    return static_cast<const MultiHeadOperator*>(self)->name;
  };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputType = input_type;
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return kMultiHeadInputCount; };
  op.GetOutputType = output_type;
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return kOutputCount; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<MultiHeadAttributes*>(kernel); };
  op.GetInputCharacteristic = [](const CustomOp*, size_t i) -> int {
    return i == kHeadQuery || i == kKvB ? kRequired : kOptional;
  };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t i) -> int {
    return i == kOutput ? kRequired : kOptional;
  };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return 0; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  op.GetMayInplace = may_be_in_place;
  op.ReleaseMayInplace = [](int*, int*) {};
  op.name = name;
  op.type = types.of_tensors;
  op.cache_type = types.of_caches;
  return op;
}

std::vector<MultiHeadOperator> make_multi_head_operators() {
  constexpr Types kTypes[] = {
      {MLA_OPT_FLOAT32, MLA_OPT_FLOAT32}, {MLA_OPT_FLOAT16, MLA_OPT_FLOAT16},
      {MLA_OPT_BFLOAT16, MLA_OPT_BFLOAT16}, {MLA_OPT_FLOAT64, MLA_OPT_FLOAT64},
      {MLA_OPT_FLOAT32, MLA_OPT_FLOAT16}, {MLA_OPT_FLOAT32, MLA_OPT_BFLOAT16},
      {MLA_OPT_FLOAT32, MLA_OPT_INT8}, {MLA_OPT_FLOAT32, MLA_OPT_FLOAT8E4M3FN},
  };
  std::vector<MultiHeadOperator> made;
  for (const char* name : kMultiHeadNames)
    for (const Types types : kTypes) made.push_back(make_operator(name, types));
  return made;
}

}  // namespace

const std::vector<MultiHeadOperator> kMultiHeadOperators = make_multi_head_operators();

}  // namespace mla_opt
