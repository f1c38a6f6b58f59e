// AVX-512-BF16 for bfloat16 rows; what it does not fit goes to the AVX-512 tier.
#include <math.h>

#include "copy.h"
#include "element.h"
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
}
namespace avx512bf16 {
namespace {
#include "vectors.inl"
#include "rows_bf16.inl"
#include "products_bf16.inl"
#include "flash.inl"

bool runs_here() { return avx512::tier.runs_here() && __builtin_cpu_supports("avx512bf16"); }

size_t query_bytes_or_below(const Problem& p, int64_t rows) {
  return fits(p) ? query_bytes(p, rows) : avx512::tier.query_bytes(p, rows);
}

void pack_query_or_below(const Problem& p, const Tile& tile, void* packed) {
  return fits(p) ? pack_query(p, tile, packed) : avx512::tier.pack_query(p, tile, packed);
}

bool attend_or_below(const Problem& p, const Tile& tile, const void* packed, int64_t first_key,
                     int64_t end_key, bool copy, const Partial& partial, Scratch& scratch) {
  const auto run = fits(p) ? attend : avx512::tier.attend;
  return run(p, tile, packed, first_key, end_key, copy, partial, scratch);
}
}  // namespace

extern const Tier tier = {"avx512bf16",   runs_here,           LANES,
                          partial_stride, query_bytes_or_below, pack_query_or_below,
                          attend_or_below, finish};
}  // namespace avx512bf16
}  // namespace mla_opt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
