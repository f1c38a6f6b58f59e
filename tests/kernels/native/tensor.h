// Tensors whose memory ends where their last element does, so that a sanitizer sees each step beyond.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "../../../mla_opt/kernels/cpu/element.h"
#include "../../../mla_opt/kernels/onnxruntime/operands.h"

constexpr int32_t kInt32 = 6;

inline size_t size_of_type(int32_t type) {
  return type == kInt32 ? 4 : mla_opt::element_size(type);
}

struct Tensor {
  int32_t type = 0;
  std::vector<int64_t> dims;
  std::unique_ptr<char[]> data;
  size_t bytes = 0;

  bool given() const { return data != nullptr; }
  int64_t count() const {
    int64_t product = 1;
    for (const int64_t dim : dims) product *= dim;
    return product;
  }
};

inline Tensor make_tensor(int32_t type, std::vector<int64_t> dims) {
  Tensor tensor;
  tensor.type = type;
  tensor.dims = std::move(dims);
  tensor.bytes = static_cast<size_t>(tensor.count()) * size_of_type(type);
  tensor.data = std::make_unique<char[]>(tensor.bytes);
  return tensor;
}

inline Tensor copy_of(const Tensor& from) {
  Tensor tensor = make_tensor(from.type, from.dims);
  std::memcpy(tensor.data.get(), from.data.get(), tensor.bytes);
  return tensor;
}

inline double value_at(const Tensor& tensor, int64_t at) {
  const void* data = tensor.data.get();
  switch (tensor.type) {
    case MLA_OPT_FLOAT64:
      return static_cast<const double*>(data)[at];
    case MLA_OPT_FLOAT32:
      return static_cast<double>(static_cast<const float*>(data)[at]);
    case MLA_OPT_FLOAT16:
      return static_cast<double>(mla_opt::to_float(static_cast<const mla_opt::Half*>(data)[at]));
    case MLA_OPT_BFLOAT16:
      return static_cast<double>(mla_opt::to_float(static_cast<const mla_opt::BFloat16*>(data)[at]));
    case kInt32:
      return static_cast<const int32_t*>(data)[at];
    case MLA_OPT_INT8:
      return static_cast<const int8_t*>(data)[at];
    case MLA_OPT_FLOAT8E4M3FN:
      return static_cast<double>(
          mla_opt::to_float(static_cast<const mla_opt::Float8E4M3FN*>(data)[at]));
    default:
      return static_cast<const uint8_t*>(data)[at];
  }
}

inline void set_value(Tensor& tensor, int64_t at, double value) {
  void* data = tensor.data.get();
  const auto single = static_cast<float>(value);
  switch (tensor.type) {
    case MLA_OPT_FLOAT64:
      static_cast<double*>(data)[at] = value;
      break;
    case MLA_OPT_FLOAT32:
      static_cast<float*>(data)[at] = single;
      break;
    case MLA_OPT_FLOAT16:
      mla_opt::from_float(single, static_cast<mla_opt::Half*>(data)[at]);
      break;
    case MLA_OPT_BFLOAT16:
      mla_opt::from_float(single, static_cast<mla_opt::BFloat16*>(data)[at]);
      break;
    case kInt32:
      static_cast<int32_t*>(data)[at] = static_cast<int32_t>(value);
      break;
    case MLA_OPT_INT8:
      static_cast<int8_t*>(data)[at] = static_cast<int8_t>(value);
      break;
    case MLA_OPT_FLOAT8E4M3FN:
      mla_opt::from_float(single, static_cast<mla_opt::Float8E4M3FN*>(data)[at]);
      break;
    default:
      static_cast<uint8_t*>(data)[at] = value != 0.0;
  }
}
