// AVX-512: 32 registers of 16 floats.
#include <math.h>

#include "copy.h"
#include "element.h"
#include "heads.h"
#include "tier.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif

#define LANES 16
#define SCORE_VECTORS 2
#define SCORE_KEYS_WIDE 12
#define SCORE_KEYS_ONE 16
#define VALUE_VECTORS 4
#define VALUE_ROWS 6

namespace mla_opt {
namespace avx512 {
namespace {
#include "vectors.inl"
#include "widen_avx512.inl"
#include "dequantize.inl"
#include "products_fp32.inl"
#include "flash.inl"
#include "unpack.inl"
#include "few_rows.inl"
#include "many_rows.inl"

bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("fma");
}
}  // namespace

extern const HeadProducts head_products = kHeadProducts;
extern const Tier tier = {"avx512",   runs_here, LANES,  partial_stride, query_bytes,
                          pack_query, attend,    finish, &head_products};
}  // namespace avx512
}  // namespace mla_opt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
