#include "quantized_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mla_opt {
namespace {

struct Int8 {
  static constexpr float kMost = 127.0f;
  // Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits of the sum, the even one of two.
  static uint8_t code(float value) {
    constexpr float kShift = 12582912.0f;
    return static_cast<uint8_t>(static_cast<int8_t>((value + kShift) - kShift));
  }
  static float number(uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)); }
};

struct E4M3 {
  static constexpr float kMost = 448.0f;
  static uint8_t code(float value) { return converted<Float8E4M3FN>(value).bits; }
  static float number(uint8_t code) { return to_float(Float8E4M3FN{code}); }
};

float largest(const float* block, int64_t count) {
  float most = 0.0f;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::fabs(block[i]));
  return most;
}

bool is_finite(const float* block, int64_t count) {
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += block[i] * 0.0f;
  return sum == 0.0f;
}

// Returns the scale. What has numbers that are not finite gets one that is none, and is seen by all.
template <class Code>
BFloat16 quantize_block(const float* block, int64_t count, uint8_t* codes) {
  const float most = largest(block, count);
  const auto scale = converted<BFloat16>(most / Code::kMost);
  const float step = to_float(scale);
  const bool is_number = is_finite(block, count);
  if (!is_number || step == 0.0f) {
    std::fill_n(codes, count, uint8_t{0});
    return is_number ? scale : converted<BFloat16>(std::numeric_limits<float>::quiet_NaN());
  }
  for (int64_t i = 0; i < count; ++i)
    codes[i] = Code::code(std::clamp(block[i] / step, -Code::kMost, Code::kMost));
  return scale;
}

template <class Code>
void dequantize(const uint8_t* codes, const BFloat16* scales, int64_t rank, float* row) {
  for (int64_t c = 0; c < rank; ++c)
    row[c] = Code::number(codes[c]) * to_float(scales[c / kCodesPerScale]);
}

}  // namespace

void quantize_row(const float* row, int32_t cache_type, int64_t rank, int64_t rope_dim,
                  uint8_t* codes, BFloat16* beside) {
  const auto quantize = cache_type == MLA_OPT_INT8 ? quantize_block<Int8> : quantize_block<E4M3>;
  for (int64_t d = 0; d < rope_dim; ++d) from_float(row[rank + d], beside[d]);
  BFloat16* scales = beside + rope_dim;
  for (int64_t first = 0; first < rank; first += kCodesPerScale)
    *scales++ = quantize(row + first, std::min(kCodesPerScale, rank - first), codes + first);
  std::fill(scales, beside + width_beside(cache_type, rank, rope_dim), BFloat16{0});
}

void dequantize_row(const uint8_t* codes, int32_t cache_type, const BFloat16* scales, int64_t rank,
                    float* row) {
  if (cache_type == MLA_OPT_INT8) return dequantize<Int8>(codes, scales, rank, row);
  dequantize<E4M3>(codes, scales, rank, row);
}

}  // namespace mla_opt
