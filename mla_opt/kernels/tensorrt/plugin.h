// LatentAttention as a TensorRT plugin: namespace mla_opt, version 1.
#pragma once

#include <string>
#include <vector>

#include "fields.h"
#include "problem.h"

namespace mla_opt::tensorrt {

constexpr char kName[] = "LatentAttention";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "mla_opt";

// The cache is written in place: output 1 is an alias of input 2, which needs TensorRT's preview
// feature ALIASED_PLUGIN_IO_10_03. Nothing is allocated, and nothing waited for, in enqueue.
class LatentAttention final : public nvinfer1::IPluginV3,
                              public nvinfer1::IPluginV3OneCore,
                              public nvinfer1::IPluginV3OneBuildV2,
                              public nvinfer1::IPluginV3OneRuntime {
 public:
  explicit LatentAttention(const Fields& fields);

  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return kOutputCount; }
  int32_t getOutputDataTypes(nvinfer1::DataType* types, int32_t count,
                             const nvinfer1::DataType* inputs,
                             int32_t input_count) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t shape_input_count,
                          nvinfer1::DimsExprs* outputs, int32_t count,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* all,
                                 int32_t input_count, int32_t count) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t count) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t input_count,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t count) const noexcept override;
  int32_t getAliasedInput(int32_t output) noexcept override;
  const char* getTimingCacheID() noexcept override;

  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t input_count,
                        const nvinfer1::PluginTensorDesc* outputs,
                        int32_t count) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* inputs,
                  const nvinfer1::PluginTensorDesc* outputs, const void* const* input_data,
                  void* const* output_data, void* workspace,
                  cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  Fields fields_;
  int32_t input_count_ = 0;  // enqueue is not told
  std::string timing_id_;
  std::vector<nvinfer1::PluginField> storage_;
  nvinfer1::PluginFieldCollection serialized_{};
};

}  // namespace mla_opt::tensorrt
