// Does with a plugin library what TensorRT does, without TensorRT: looks up its creator, makes plugins
// of a node and of an engine, and asks them everything that a build asks. Prints a line for each answer.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "NvInferRuntime.h"

using namespace nvinfer1;

namespace {

class Log final : public ILogger {
  void log(Severity, const char* text) noexcept override { std::printf("log: %s\n", text); }
};

class Finder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override { return &log_; }

 private:
  Log log_;
};

// TensorRT's own classes hand every question on to one behind them.
class Number final : public apiv::VDimensionExpr {
 public:
  explicit Number(int64_t value) : value_(value) {}
  bool isConstant() const override { return true; }
  int64_t getConstantValue() const override { return value_; }
  bool isSizeTensor() const override { return false; }

 private:
  int64_t value_;
};

class Size final : public IDimensionExpr {
 public:
  explicit Size(int64_t value) : number_(value) { mImpl = &number_; }

 private:
  Number number_;
};

class Constants final : public apiv::VExprBuilder {
 public:
  const IDimensionExpr* constant(int64_t value) override {
    made_.push_back(std::make_unique<Size>(value));
    return made_.back().get();
  }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&,
                                  const IDimensionExpr&) override {
    return nullptr;
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&,
                                          const IDimensionExpr&) override {
    return nullptr;
  }

 private:
  std::vector<std::unique_ptr<Size>> made_;
};

class Sizes final : public IExprBuilder {
 public:
  Sizes() { mImpl = &constants_; }

 private:
  Constants constants_;
};

// The attributes of a node, or what an engine kept.
struct Given {
  float scale = 0.125f;
  int64_t rank = 512, causal = 1;
  int32_t multiprocessors = 132, abi = 0;

  IPluginV3* make(IPluginCreatorV3One& creator, TensorRTPhase phase, int count = 3) const {
    PluginField fields[] = {{"scale", &scale, PluginFieldType::kFLOAT32, 1},
                            {"kv_lora_rank", &rank, PluginFieldType::kINT64, 1},
                            {"causal", &causal, PluginFieldType::kINT64, 1},
                            {"multiprocessors", &multiprocessors, PluginFieldType::kINT32, 1},
                            {"abi", &abi, PluginFieldType::kINT32, 1}};
    const PluginFieldCollection all{count, fields};
    return creator.createPlugin("site", &all, phase);
  }
};

constexpr int kInputs = 6, kTensors = 8;

Dims dims(const std::vector<int64_t>& sizes) {
  Dims result{};
  result.nbDims = static_cast<int32_t>(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) result.d[i] = sizes[i];
  return result;
}

// query, latent, cache, past_len, bias, sink, then the outputs; `width` is C + R.
std::vector<DynamicPluginTensorDesc> tensors(DataType type, int64_t width) {
  const std::vector<int64_t> shapes[kTensors] = {{4, 16, 1, width}, {4, 1, 1, width},
                                                 {4, 1, 1024, width}, {4}, {4, 1, 1, 1024}, {16},
                                                 {4, 16, 1, 512}, {4, 1, 1024, width}};
  std::vector<DynamicPluginTensorDesc> all(kTensors);
  for (int i = 0; i < kTensors; ++i) {
    all[i].desc = {dims(shapes[i]), i == 3 ? DataType::kINT32 : i == 4 ? DataType::kBOOL : type,
                   TensorFormat::kLINEAR, 1};
    all[i].min = all[i].max = all[i].opt = all[i].desc.dims;
  }
  return all;
}

template <class Capability>
Capability& of(IPluginV3& plugin, PluginCapabilityType type) {
  return *static_cast<Capability*>(plugin.getCapabilityInterface(type));
}

void tell_shapes(IPluginV3OneBuildV2& build) {
  Sizes sizes;
  const auto all = tensors(DataType::kBF16, 576);
  DimsExprs inputs[kInputs]{}, outputs[2]{};
  for (int i = 0; i < kInputs; ++i) {
    inputs[i].nbDims = all[i].desc.dims.nbDims;
    for (int axis = 0; axis < inputs[i].nbDims; ++axis)
      inputs[i].d[axis] = sizes.constant(all[i].desc.dims.d[axis]);
  }
  const int32_t status = build.getOutputShapes(inputs, kInputs, nullptr, 0, outputs, 2, sizes);
  std::printf("shapes: %d", status);
  for (const DimsExprs& output : outputs)
    for (int axis = 0; axis < output.nbDims; ++axis)
      std::printf(" %lld", static_cast<long long>(output.d[axis]->getConstantValue()));
  std::printf("\n");
}

bool takes(IPluginV3OneBuildV2& build, const std::vector<DynamicPluginTensorDesc>& all) {
  bool result = true;
  for (int i = 0; i < kTensors; ++i)
    result = result && build.supportsFormatCombination(i, all.data(), kInputs, 2);
  return result;
}

void tell_build(IPluginV3OneBuildV2& build) {
  const auto all = tensors(DataType::kBF16, 576), wide = tensors(DataType::kBF16, 640);
  std::printf("outputs: %d\n", build.getNbOutputs());
  std::printf("alias: %d %d\n", build.getAliasedInput(0), build.getAliasedInput(1));
  std::printf("timing: %s\n", build.getTimingCacheID());
  tell_shapes(build);
  for (const auto type : {DataType::kBF16, DataType::kHALF, DataType::kFLOAT})
    std::printf("takes %d: %d\n", static_cast<int>(type), takes(build, tensors(type, 576)));
  auto mixed = all;
  mixed[2].desc.type = DataType::kHALF;
  std::printf("takes mixed: %d\n", takes(build, mixed));
  std::printf("configured: %d\n", build.configurePlugin(all.data(), kInputs, all.data() + kInputs, 2));
  std::printf("wide: %d\n", build.configurePlugin(wide.data(), kInputs, wide.data() + kInputs, 2));
  auto apart = all;
  apart[1].desc.dims.d[3] = 512;
  std::printf("apart: %d\n", build.configurePlugin(apart.data(), kInputs, apart.data() + kInputs, 2));
  std::printf("workspace: %zu\n",
              build.getWorkspaceSize(all.data(), kInputs, all.data() + kInputs, 2));
}

// A plugin of what another would have an engine keep, with `change` added to its version.
IPluginV3* kept(IPluginCreatorV3One& creator, IPluginV3OneRuntime& runtime, int change) {
  Given given;
  const PluginFieldCollection& all = *runtime.getFieldsToSerialize();
  std::vector<PluginField> fields(all.fields, all.fields + all.nbFields);
  for (PluginField& field : fields) {
    if (std::strcmp(field.name, "abi") != 0) continue;
    given.abi = *static_cast<const int32_t*>(field.data) + change;
    field.data = &given.abi;
  }
  const PluginFieldCollection changed{all.nbFields, fields.data()};
  return creator.createPlugin("site", &changed, TensorRTPhase::kRUNTIME);
}

// Without a GPU it must say so, and not end the process.
void tell_launch(IPluginV3& plugin) {
  auto& runtime = of<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
  const auto all = tensors(DataType::kBF16, 576);
  PluginTensorDesc inputs[kInputs], outputs[2];
  for (int i = 0; i < kTensors; ++i) (i < kInputs ? inputs[i] : outputs[i - kInputs]) = all[i].desc;
  std::printf("shape change: %d\n", runtime.onShapeChange(inputs, kInputs, outputs, 2));
  alignas(16) static char somewhere[16];
  const void* read[kInputs];
  for (const void*& address : read) address = somewhere;
  void* written[2] = {somewhere, somewhere};
  std::printf("enqueue: %d\n", runtime.enqueue(inputs, outputs, read, written, somewhere, nullptr));
}

int drive(IPluginCreatorV3One& creator) {
  std::printf("creator: %s %s %s\n", creator.getPluginNamespace(), creator.getPluginName(),
              creator.getPluginVersion());
  Given wrong;
  wrong.rank = 0;
  std::printf("no rank: %d\n", wrong.make(creator, TensorRTPhase::kBUILD) != nullptr);
  std::printf("no causal: %d\n", Given{}.make(creator, TensorRTPhase::kBUILD, 2) != nullptr);
  std::printf("no version: %d\n", Given{}.make(creator, TensorRTPhase::kRUNTIME) != nullptr);
  IPluginV3* plugin = Given{}.make(creator, TensorRTPhase::kBUILD);
  if (!plugin) return 1;
  tell_build(of<IPluginV3OneBuildV2>(*plugin, PluginCapabilityType::kBUILD));
  auto& runtime = of<IPluginV3OneRuntime>(*plugin, PluginCapabilityType::kRUNTIME);
  IPluginV3* opened = kept(creator, runtime, 0);
  std::printf("kept: %d\n", opened != nullptr);
  if (!opened) return 1;
  tell_build(of<IPluginV3OneBuildV2>(*opened, PluginCapabilityType::kBUILD));
  std::printf("another version: %d\n", kept(creator, runtime, 1) != nullptr);
  tell_launch(*opened);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  void* library = count == 2 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (!library) {
    std::fprintf(stderr, "%s\n", count == 2 ? dlerror() : "usage: drive_plugin LIBRARY");
    return 2;
  }
  using Creators = IPluginCreatorInterface* const* (*)(int32_t&);
  const auto find = reinterpret_cast<Creators>(dlsym(library, "getCreators"));
  const auto log_to = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  if (!find || !log_to) return 3;
  static Finder finder;
  log_to(&finder);
  int32_t found = 0;
  IPluginCreatorInterface* const* creators = find(found);
  std::printf("creators: %d\n", found);
  for (int32_t i = 0; i < found; ++i)
    std::printf("for: %s\n", static_cast<IPluginCreatorV3One*>(creators[i])->getPluginName());
  return drive(*static_cast<IPluginCreatorV3One*>(creators[0]));
}
