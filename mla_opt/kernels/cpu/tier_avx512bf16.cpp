// AVX-512-BF16 for bfloat16 rows; what it does not fit goes to the AVX-512 tier.
#include <math.h>

#include "copy.h"
#include "element.h"
#include "heads.h"
#include "tier.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                              \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#endif

#define LANES 16

namespace mla_opt {
namespace avx512 {
extern const Tier tier;
extern const HeadProducts head_products;
}
namespace avx512bf16 {
namespace {
#include "vectors.inl"
#include "widen_avx512.inl"
#include "dequantize.inl"
#include "dequantize_fp16.inl"
#include "rows_bf16.inl"
#include "products_bf16.inl"
#include "flash.inl"
#include "as_queries.inl"
#include "heads_bf16.inl"

bool runs_here() { return avx512::tier.runs_here() && __builtin_cpu_supports("avx512bf16"); }

#define FITS fits
#define ATTEND attend
#define BELOW avx512::tier
#include "below.inl"
}  // namespace

extern const Tier tier = {"avx512bf16",   runs_here,           LANES,
                          partial_stride, query_bytes_or_below, pack_query_or_below,
                          attend_or_below, finish, &avx512::head_products, &kBFloat16Products};
}  // namespace avx512bf16
}  // namespace mla_opt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
