// AVX2 with FMA: 16 registers of 8 floats.
#include <math.h>

#include "copy.h"
#include "element.h"
#include "heads.h"
#include "tier.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define LANES 8
#define SCORE_VECTORS 2
#define SCORE_KEYS_WIDE 6
#define SCORE_KEYS_ONE 12
#define VALUE_VECTORS 2
#define VALUE_ROWS 6

namespace mla_opt {
namespace avx2 {
namespace {
#include "vectors.inl"
#include "widen_avx2.inl"
#include "dequantize.inl"
#include "products_fp32.inl"
#include "flash.inl"
#include "unpack.inl"
#include "few_rows.inl"
#include "many_rows.inl"

bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
}  // namespace

extern const HeadProducts head_products = kHeadProducts;
extern const Tier tier = {"avx2",       runs_here, LANES,  partial_stride, query_bytes,
                          pack_query, attend,    finish, &head_products};
}  // namespace avx2
}  // namespace mla_opt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
