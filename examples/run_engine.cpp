// Runs a decode engine that `mla-opt export` wrote, from C++: a step at its usual sizes, timed.
//
//   g++ -std=c++17 run_engine.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart
//   ./a.out engines/decode.engine engines/libmla_opt_tensorrt.so past.0.latent=present.0.latent ...
//
// After the plugin (`-` for an engine without one) come the caches, input=output, as manifest.json
// lists them. All other inputs are zeros: token 0 on an empty cache, with nothing to attend to but
// itself. A program of its own would copy token ids, mask, positions and past_len into them.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "NvInferRuntime.h"

namespace {

using nvinfer1::Dims;

class Log final : public nvinfer1::ILogger {
  void log(Severity severity, const char* text) noexcept override {
    if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", text);
  }
};

void require(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

void check(cudaError_t status, const char* what) {
  require(status == cudaSuccess, std::string(what) + ": " + cudaGetErrorString(status));
}

size_t bytes_of(const Dims& dims, nvinfer1::DataType type) {
  size_t size = type == nvinfer1::DataType::kINT64                                       ? 8
                : type == nvinfer1::DataType::kFLOAT || type == nvinfer1::DataType::kINT32 ? 4
                : type == nvinfer1::DataType::kHALF || type == nvinfer1::DataType::kBF16   ? 2
                                                                                           : 1;
  for (int axis = 0; axis < dims.nbDims; ++axis) size *= static_cast<size_t>(dims.d[axis]);
  return size;
}

std::vector<char> read(const char* path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), std::string(path) + ": cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

// A buffer of zeros for every tensor; a cache's output is its input's buffer.
void bind(const nvinfer1::ICudaEngine& engine, nvinfer1::IExecutionContext& context,
          const std::map<std::string, std::string>& input_of) {
  std::map<std::string, void*> buffers;
  for (const bool inputs : {true, false})
    for (int i = 0; i < engine.getNbIOTensors(); ++i) {
      const char* name = engine.getIOTensorName(i);
      if ((engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT) != inputs) continue;
      if (inputs)
        require(context.setInputShape(
                    name, engine.getProfileShape(name, 0, nvinfer1::OptProfileSelector::kOPT)),
                std::string(name) + ": its shape is refused");
      const auto cache = input_of.find(name);
      void*& buffer = buffers[name];
      if (cache != input_of.end()) {
        buffer = buffers[cache->second];
        require(buffer, cache->second + ": is no input");
      } else {
        const size_t size = bytes_of(context.getTensorShape(name), engine.getTensorDataType(name));
        check(cudaMalloc(&buffer, size ? size : 1), name);
        check(cudaMemset(buffer, 0, size), name);
      }
      require(context.setTensorAddress(name, buffer), std::string(name) + ": is not bound");
    }
}

float milliseconds_of_a_step(nvinfer1::IExecutionContext& context) {
  cudaStream_t stream;
  cudaEvent_t before, after;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  check(cudaEventCreate(&before), "cudaEventCreate");
  check(cudaEventCreate(&after), "cudaEventCreate");
  require(context.enqueueV3(stream), "the step cannot be started");  // loads the kernels
  check(cudaEventRecord(before, stream), "cudaEventRecord");
  require(context.enqueueV3(stream), "the step cannot be started");
  check(cudaEventRecord(after, stream), "cudaEventRecord");
  check(cudaStreamSynchronize(stream), "the step");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, before, after), "cudaEventElapsedTime");
  return milliseconds;
}

}  // namespace

int main(int count, char** arguments) {
  require(count >= 3, "usage: run_engine ENGINE PLUGIN|- CACHE_INPUT=CACHE_OUTPUT ...");
  Log log;
  std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(log));
  require(runtime != nullptr, "TensorRT cannot be used");
  // Before the engine is opened: it names its plugin only.
  if (std::strcmp(arguments[2], "-") != 0)
    require(runtime->getPluginRegistry().loadLibrary(arguments[2]) != nullptr,
            std::string(arguments[2]) + ": cannot be loaded");
  const std::vector<char> content = read(arguments[1]);
  std::unique_ptr<nvinfer1::ICudaEngine> engine(
      runtime->deserializeCudaEngine(content.data(), content.size()));
  require(engine != nullptr, std::string(arguments[1]) + ": cannot be opened");
  std::map<std::string, std::string> input_of;
  for (int i = 3; i < count; ++i) {
    const std::string pair = arguments[i];
    const size_t at = pair.find('=');
    require(at != std::string::npos, pair + ": is not INPUT=OUTPUT");
    input_of[pair.substr(at + 1)] = pair.substr(0, at);
  }
  std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
  require(context != nullptr, "there is no memory for the engine");
  bind(*engine, *context, input_of);
  std::printf("%.3f ms\n", static_cast<double>(milliseconds_of_a_step(*context)));
  return 0;
}
