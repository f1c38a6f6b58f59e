// What TensorRT looks up in the library: loading it registers the plugin, and links nothing.
#include <new>

#include "../cuda/latent_attention_cuda.h"
#include "log.h"
#include "plugin.h"

namespace mla_opt::tensorrt {
namespace {

class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
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
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

 private:
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
  static mla_opt::tensorrt::Creator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
