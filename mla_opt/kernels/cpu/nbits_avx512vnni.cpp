// AVX-512 with VNNI: vpdpbusd multiplies 64 unsigned codes of b with as many signed ones of a, and adds
// them by fours to 16 lanes.
//
// A zero point z of b takes no part in that: sum (q - z) a is sum q a - z sum a, and the sums of a are
// taken when it is rounded. Where all zero points are the middle of the codes, lanes start at -z sum a;
// else vpdpwssd adds that, of z and of -sum a, both of which fit 16 bits.
#include <cstring>

#include "element.h"
#include "nbits_products.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                              \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,bmi2,f16c,fma")
#endif

namespace mla_opt {
namespace avx512vnni {
namespace {

constexpr int64_t kParts = kGroup / kPart;

#include "nbits_round.inl"
#include "nbits_few_rows.inl"
#include "nbits_many_rows.inl"

// F16C is older than all of these, and Clang 14 cannot ask for it.
bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("fma");
}

}  // namespace

extern const NBitsProducts products = {runs_here,   round_row,   multiply_few, kPanelColumns,
                                       panel_bytes, pack_panel, multiply_many};

}  // namespace avx512vnni
}  // namespace mla_opt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
