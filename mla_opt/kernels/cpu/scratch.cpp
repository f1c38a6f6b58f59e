#include <cstdlib>

#include "tier.h"

namespace mla_opt {

namespace {
constexpr size_t kLine = 64;
}

Scratch::~Scratch() { std::free(data_); }

char* Scratch::reserve(size_t bytes) {
  if (bytes <= size_) return data_;
  const size_t size = (bytes + kLine - 1) / kLine * kLine;
  std::free(data_);
  data_ = static_cast<char*>(std::aligned_alloc(kLine, size));
  size_ = data_ ? size : 0;
  return data_;
}

}  // namespace mla_opt
