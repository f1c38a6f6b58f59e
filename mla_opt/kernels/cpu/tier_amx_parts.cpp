// AMX for float32 and float16 rows, as part of the tier amx. What does not fill tiles goes to the tier
// below.
#include <math.h>

#include "copy.h"
#include "element.h"
#include "heads.h"
#include "tier.h"

#if MLA_OPT_HAS_AMX

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,amx-tile,amx-bf16")
#endif

#define LANES 16

namespace mla_opt {
namespace avx512 {
extern const HeadProducts head_products;
}
namespace avx512bf16 {
extern const Tier tier;
}
namespace amx_parts {
namespace {
#include "vectors.inl"
#include "tiles_amx.inl"
#include "parts_bf16.inl"
#include "products_amx_parts.inl"
#include "flash.inl"
#include "as_queries.inl"
#include "heads_amx.inl"

#define FITS fits
#define ATTEND attend_on_tiles
#define BELOW avx512bf16::tier
#include "attend_on_tiles.inl"
#include "below.inl"

// Only by way of the tier amx, which asks.
bool runs_here() { return false; }
}  // namespace

extern const HeadProducts head_products = kHeadProducts;
extern const Tier tier = {"amx_parts",    runs_here,            LANES,
                          partial_stride, query_bytes_or_below, pack_query_or_below,
                          attend_or_below, finish, &head_products};
}  // namespace amx_parts
}  // namespace mla_opt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
