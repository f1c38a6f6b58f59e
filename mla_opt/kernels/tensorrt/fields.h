// What a LatentAttention plugin is made of: the attributes of the node, and what an engine keeps.
#pragma once

#include <cstdint>
#include <vector>

#include "NvInferRuntime.h"

namespace mla_opt::tensorrt {

// Multiprocessors to plan for where the machine that builds an engine has no GPU: enough workspace
// for any that there is today.
constexpr int32_t kUnknownDevice = 192;

struct Fields {
  float scale = 0;
  int32_t kv_lora_rank = 0;
  int32_t causal = 0;
  // Of the device that the engine was built on. Launches are planned for as many, so that the
  // workspace that was reserved suffices on another device too.
  int32_t multiprocessors = 0;
  // Version of the kernels' ABI that the engine was built with; 0 when it is being built.
  int32_t abi = 0;
};

// The attributes that a creator asks the parser for.
const nvinfer1::PluginFieldCollection& node_fields();

// Reads the attributes of a node, or what an engine kept. False, with a line in the log, where one
// is missing, is of another type, or has no meaning.
bool read_fields(const nvinfer1::PluginFieldCollection& given, Fields& fields);

// What an engine is to keep. Points into `fields`, which must live as long.
nvinfer1::PluginFieldCollection engine_fields(const Fields& fields,
                                              std::vector<nvinfer1::PluginField>& storage);

}  // namespace mla_opt::tensorrt
