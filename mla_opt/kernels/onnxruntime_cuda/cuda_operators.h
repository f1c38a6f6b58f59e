// mla_opt::LatentAttention on ONNX Runtime's CUDA execution provider.
#pragma once

#include "../onnxruntime/node.h"

namespace mla_opt {

extern const std::vector<Operator> kCudaOperators;

}  // namespace mla_opt
