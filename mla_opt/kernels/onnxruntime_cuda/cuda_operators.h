// mla_opt::LatentAttention on ONNX Runtime's CUDA execution provider.
#pragma once

#include "../onnxruntime/node.h"

namespace mla_opt {

extern const Operator kCudaOperators[2];

}  // namespace mla_opt
