// Latent rows of 8 bits (mla_opt/operator/quantized_rows.py): C codes in one tensor, and in the other
// R numbers of k_pe, a scale for each block of codes, and zeros up to a full line of 8.
#pragma once

#include <cstdint>

#include "element.h"

namespace mla_opt {

constexpr int64_t kCodesPerScale = 128;
constexpr int64_t kWidthStep = 8;

inline bool is_quantized(int32_t cache_type) {
  return cache_type == MLA_OPT_INT8 || cache_type == MLA_OPT_FLOAT8E4M3FN;
}

// The type of k_pe beside a c_kv of this one.
inline int32_t type_beside(int32_t cache_type) {
  return is_quantized(cache_type) ? static_cast<int32_t>(MLA_OPT_BFLOAT16) : cache_type;
}

inline int64_t scales_of(int64_t rank) { return (rank + kCodesPerScale - 1) / kCodesPerScale; }

// Numbers in a row of the second tensor.
inline int64_t width_beside(int32_t cache_type, int64_t rank, int64_t rope_dim) {
  if (!is_quantized(cache_type)) return rope_dim;
  return (rope_dim + scales_of(rank) + kWidthStep - 1) / kWidthStep * kWidthStep;
}

// A row [c_kv | k_pe] of floats as the two tensors keep it.
void quantize_row(const float* row, int32_t cache_type, int64_t rank, int64_t rope_dim,
                  uint8_t* codes, BFloat16* beside);

// c_kv of a row: codes times their scales, exactly.
void dequantize_row(const uint8_t* codes, int32_t cache_type, const BFloat16* scales, int64_t rank,
                    float* row);

}  // namespace mla_opt
