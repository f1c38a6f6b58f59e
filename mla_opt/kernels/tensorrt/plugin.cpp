#include "plugin.h"

#include <new>

#include "log.h"

namespace mla_opt::tensorrt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;

// The problem of the operands as they are, or at the largest sizes of a profile.
bool problem_of(const Fields& fields, const PluginTensorDesc* inputs, int32_t count,
                mla_opt_latent_attention& problem) {
  Operand operands[kMostInputs];
  for (int32_t i = 0; i < count && i < kMostInputs; ++i)
    operands[i] = {inputs[i].type, inputs[i].dims, inputs[i].dims};
  return make_problem(fields, operands, count, problem);
}

bool largest_problem(const Fields& fields, const DynamicPluginTensorDesc* inputs, int32_t count,
                     mla_opt_latent_attention& problem) {
  Operand operands[kMostInputs];
  for (int32_t i = 0; i < count && i < kMostInputs; ++i)
    operands[i] = {inputs[i].desc.type, inputs[i].desc.dims, inputs[i].max};
  return make_problem(fields, operands, count, problem);
}

}  // namespace

LatentAttention::LatentAttention(const Fields& fields) : fields_(fields) {
  timing_id_ = std::string(kNamespace) + "::" + kName + " " + kVersion + " abi " +
               std::to_string(fields.abi) + " C " + std::to_string(fields.kv_lora_rank) +
               (fields.causal ? " causal" : "");
}

nvinfer1::IPluginCapability* LatentAttention::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuildV2*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

nvinfer1::IPluginV3* LatentAttention::clone() noexcept {
  auto* copy = new (std::nothrow) LatentAttention(fields_);
  if (copy) copy->input_count_ = input_count_;
  return copy;
}

int32_t LatentAttention::getOutputDataTypes(DataType* types, int32_t count, const DataType* inputs,
                                            int32_t input_count) const noexcept {
  if (count != kOutputCount || input_count < kLeastInputs) return 1;
  types[kOutput] = inputs[kQuery];
  types[kNewCache] = inputs[kCache];
  return 0;
}

int32_t LatentAttention::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                                         const nvinfer1::DimsExprs*, int32_t,
                                         nvinfer1::DimsExprs* outputs, int32_t count,
                                         nvinfer1::IExprBuilder& builder) noexcept {
  if (count != kOutputCount || input_count < kLeastInputs || inputs[kQuery].nbDims != 4) {
    fail("LatentAttention: %d inputs and %d outputs, the query of rank %d", input_count, count,
         input_count > kQuery ? inputs[kQuery].nbDims : 0);
    return 1;
  }
  outputs[kOutput] = inputs[kQuery];
  outputs[kOutput].d[3] = builder.constant(fields_.kv_lora_rank);
  outputs[kNewCache] = inputs[kCache];
  return 0;
}

bool LatentAttention::supportsFormatCombination(int32_t position,
                                                const DynamicPluginTensorDesc* all,
                                                int32_t input_count, int32_t) noexcept {
  const PluginTensorDesc& tensor = all[position].desc;
  if (tensor.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const DataType type = all[kQuery].desc.type;
  if (position == kQuery) return type == DataType::kHALF || type == DataType::kBF16;
  if (position == kPastLen) return tensor.type == DataType::kINT32;
  if (position == kBias && position < input_count && tensor.type == DataType::kBOOL) return true;
  return tensor.type == type;
}

int32_t LatentAttention::configurePlugin(const DynamicPluginTensorDesc* inputs,
                                         int32_t input_count, const DynamicPluginTensorDesc*,
                                         int32_t) noexcept {
  mla_opt_latent_attention problem;
  if (!largest_problem(fields_, inputs, input_count, problem)) return 1;
  if (!mla_opt_cuda_latent_attention_workspace(&problem, fields_.multiprocessors)) {
    fail("LatentAttention: there is no kernel for kv_lora_rank %d and a rotary width of %lld; "
         "lower the model to standard operators",
         fields_.kv_lora_rank, static_cast<long long>(problem.rope_dim));
    return 1;
  }
  input_count_ = input_count;
  return 0;
}

size_t LatentAttention::getWorkspaceSize(const DynamicPluginTensorDesc* inputs,
                                         int32_t input_count, const DynamicPluginTensorDesc*,
                                         int32_t) const noexcept {
  mla_opt_latent_attention problem;
  if (!largest_problem(fields_, inputs, input_count, problem)) return 0;
  return mla_opt_cuda_latent_attention_workspace(&problem, fields_.multiprocessors);
}

int32_t LatentAttention::getAliasedInput(int32_t output) noexcept {
  return output == kNewCache ? kCache : -1;
}

const char* LatentAttention::getTimingCacheID() noexcept { return timing_id_.c_str(); }

int32_t LatentAttention::onShapeChange(const PluginTensorDesc* inputs, int32_t input_count,
                                       const PluginTensorDesc*, int32_t) noexcept {
  mla_opt_latent_attention problem;
  input_count_ = input_count;
  return problem_of(fields_, inputs, input_count, problem) ? 0 : 1;
}

int32_t LatentAttention::enqueue(const PluginTensorDesc* inputs, const PluginTensorDesc*,
                                 const void* const* input_data, void* const* output_data,
                                 void* workspace, cudaStream_t stream) noexcept {
  mla_opt_latent_attention problem;
  if (!problem_of(fields_, inputs, input_count_, problem)) return 1;
  problem.query = input_data[kQuery];
  problem.latent = input_data[kLatent];
  problem.cache = input_data[kCache];
  problem.past_len = static_cast<const int32_t*>(input_data[kPastLen]);
  problem.bias = input_count_ > kBias ? input_data[kBias] : nullptr;
  problem.sink = input_count_ > kSink ? input_data[kSink] : nullptr;
  problem.output = output_data[kOutput];
  problem.new_cache = output_data[kNewCache];
  const size_t size = mla_opt_cuda_latent_attention_workspace(&problem, fields_.multiprocessors);
  mla_opt_failure failure{};
  if (mla_opt_cuda_latent_attention_launch(&problem, fields_.multiprocessors, workspace, size,
                                           stream, &failure)) {
    fail("LatentAttention: %s", failure.message);
    return 1;
  }
  return 0;
}

nvinfer1::IPluginV3* LatentAttention::attachToContext(
    nvinfer1::IPluginResourceContext*) noexcept {
  return clone();
}

const nvinfer1::PluginFieldCollection* LatentAttention::getFieldsToSerialize() noexcept {
  serialized_ = engine_fields(fields_, storage_);
  return &serialized_;
}

}  // namespace mla_opt::tensorrt
