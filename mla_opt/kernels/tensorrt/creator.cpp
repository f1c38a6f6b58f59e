// What TensorRT looks up in the library: loading it registers the plugin, and links nothing.
#include <new>

#include "../cuda/latent_attention_cuda.h"
#include "log.h"
#include "plugin.h"

namespace mla_opt::tensorrt {
namespace {

// The operator's names (mla_opt/operator/contract.py): nodes with another function body have another
// one, and all of them mean the same. An engine keeps the first.
constexpr const char* kNames[] = {
    kName,
    "LatentAttention_2", "LatentAttention_3", "LatentAttention_4", "LatentAttention_5",
    "LatentAttention_6", "LatentAttention_7", "LatentAttention_8",
};
constexpr int32_t kNameCount = sizeof kNames / sizeof *kNames;

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  explicit Creator(const char* name) : name_(name) {}
  nvinfer1::IPluginV3* createPlugin(const char* name,
                                    const nvinfer1::PluginFieldCollection* given,
                                    nvinfer1::TensorRTPhase phase) noexcept override {
    Fields fields;
    if (!given || !read_fields(*given, fields) || !complete(name, phase, fields)) return nullptr;
    return new (std::nothrow) LatentAttention(fields);
  }
  const nvinfer1::PluginFieldCollection* getFieldNames() noexcept override {
    return &node_fields();
  }
  const char* getPluginName() const noexcept override { return name_; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
  const char* const name_;

  static bool complete(const char* name, nvinfer1::TensorRTPhase phase, Fields& fields) {
    const int version = mla_opt_cuda_abi_version();
    if (phase == nvinfer1::TensorRTPhase::kBUILD) {
      const int found = mla_opt_cuda_multiprocessors();
      fields.multiprocessors = found > 0 ? found : kUnknownDevice;
      fields.abi = version;
      return true;
    }
    if (fields.abi == version) return true;
    return fail("%s: the engine was built with version %d of the kernels, this library has %d; "
                "build the engine again",
                name, fields.abi, version);
  }
};

}  // namespace
}  // namespace mla_opt::tensorrt

extern "C" MLA_OPT_PUBLIC void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  mla_opt::tensorrt::log_to(finder);
}

extern "C" MLA_OPT_PUBLIC nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace mla_opt::tensorrt;
  static nvinfer1::IPluginCreatorInterface* creators[kNameCount] = {};
  if (!creators[0])
    for (int32_t i = 0; i < kNameCount; ++i) creators[i] = new Creator(kNames[i]);
  count = kNameCount;
  return creators;
}
