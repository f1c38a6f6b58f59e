// Element types: their sizes, and exact conversions from and to float.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "latent_attention.h"

namespace mla_opt {

// 16-bit types are kept as their bits: arithmetic is done in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// 8-bit floats, of weights: 4 bits of exponent and no infinity, 5 bits of exponent.
struct Float8E4M3FN {
  uint8_t bits;
};
struct Float8E5M2 {
  uint8_t bits;
};

inline size_t element_size(int32_t type) {
  switch (type) {
    case MLA_OPT_FLOAT64:
      return 8;
    case MLA_OPT_FLOAT32:
      return 4;
    case MLA_OPT_FLOAT16:
    case MLA_OPT_BFLOAT16:
      return 2;
    default:
      return 1;
  }
}

inline const char* type_name(int32_t type) {
  switch (type) {
    case MLA_OPT_FLOAT64:
      return "float64";
    case MLA_OPT_FLOAT32:
      return "float32";
    case MLA_OPT_FLOAT16:
      return "float16";
    case MLA_OPT_BFLOAT16:
      return "bfloat16";
    case MLA_OPT_BOOL:
      return "bool";
    case MLA_OPT_INT8:
      return "int8";
    case MLA_OPT_FLOAT8E4M3FN:
      return "float8e4m3fn";
    default:
      return "an unknown type";
  }
}

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return float_of_bits(uint32_t{value.bits} << 16); }

inline float to_float(Half value) {
  const uint32_t sign = uint32_t{value.bits} & 0x8000u;
  const uint32_t magnitude = uint32_t{value.bits} & 0x7fffu;
  // The exponent is 112 too small; a multiplication mends it, and normalises subnormal numbers.
  float result = float_of_bits(magnitude << 13) * 0x1p112f;
  if (magnitude >= 0x7c00u) result = float_of_bits(0x7f800000u | (magnitude & 0x3ffu) << 13);
  return float_of_bits(float_bits(result) | sign << 16);
}

inline float to_float(Float8E4M3FN value) {
  const uint32_t magnitude = value.bits & 0x7fu;
  // The exponent is 120 too small; a multiplication mends it, and normalises subnormal numbers.
  float result = float_of_bits(magnitude << 20) * 0x1p120f;
  if (magnitude == 0x7fu) result = float_of_bits(0x7fc00000u);
  return value.bits & 0x80u ? -result : result;
}

// The upper half of a half-precision number.
inline float to_float(Float8E5M2 value) {
  return to_float(Half{static_cast<uint16_t>(value.bits << 8)});
}

inline void from_float(float value, float& result) { result = value; }

// Rounds to nearest, ties to even; NaN stays NaN.
inline void from_float(float value, BFloat16& result) {
  const uint32_t bits = float_bits(value);
  if (value != value) {
    result.bits = static_cast<uint16_t>(bits >> 16 | 0x40u);
    return;
  }
  result.bits = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Rounds to nearest, ties to even; beyond 65504 infinity; NaN stays NaN.
inline void from_float(float value, Half& result) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Adding 0.5 aligns a subnormal result with the lowest bits of a float, and rounds it.
    half = float_bits(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  result.bits = static_cast<uint16_t>(half | sign);
}

// Rounds to nearest, ties to even; beyond 448 that; NaN stays NaN.
inline void from_float(float value, Float8E4M3FN& result) {
  const uint32_t bits = float_bits(value);
  const uint32_t sign = bits >> 24 & 0x80u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t small;
  if (magnitude > 0x7f800000u) {
    small = 0x7fu;
  } else if (magnitude >= 0x43e00000u) {
    small = 0x7eu;
  } else if (magnitude < 0x3c800000u) {
    // Adding 2^14 aligns a subnormal result with the lowest bits of a float, and rounds it.
    small = float_bits(float_of_bits(magnitude) + 0x1p14f) - float_bits(0x1p14f);
  } else {
    small = (magnitude - 0x3c000000u + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
  }
  result.bits = static_cast<uint8_t>(small | sign);
}

template <class T>
inline T converted(float value) {
  T result;
  from_float(value, result);
  return result;
}

}  // namespace mla_opt
