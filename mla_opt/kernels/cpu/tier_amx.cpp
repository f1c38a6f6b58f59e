// AMX: tiles of 16 rows of 64 bytes. Here for bfloat16 rows; others go to tier_amx_parts.cpp, and what
// fills no tiles to the tier below.
#include <math.h>

#include "copy.h"
#include "element.h"
#include "heads.h"
#include "tier.h"

#if MLA_OPT_HAS_AMX

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__)
#pragma clang attribute push(                                                                \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#endif

#define LANES 16

namespace mla_opt {
namespace avx512bf16 {
extern const Tier tier;
}
namespace amx_parts {
extern const Tier tier;
extern const HeadProducts head_products;
}
namespace amx {
namespace {
#include "vectors.inl"
#include "tiles_amx.inl"
#include "widen_avx512.inl"
#include "dequantize.inl"
#include "dequantize_fp16.inl"
#include "rows_bf16.inl"
#include "products_amx.inl"
#include "flash.inl"

bool has_instructions() {
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kBf16) && (d & kTile);
}

// Linux keeps no tiles for a process that has not asked for them.
bool may_use_tiles() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return allowed;
}

bool runs_here() {
  return avx512bf16::tier.runs_here() && has_instructions() && may_use_tiles();
}

bool fits_tiles(const Problem& p) {
  return fits(p) && front_width(p) % kTileDims == 0 && back_width(p) % kTileDims == 0;
}

#define FITS fits_tiles
#define ATTEND attend_on_tiles
#define BELOW amx_parts::tier
#include "attend_on_tiles.inl"
#include "below.inl"
}  // namespace

extern const Tier tier = {"amx",          runs_here,           LANES,
                          partial_stride, query_bytes_or_below, pack_query_or_below,
                          attend_or_below, finish, &amx_parts::head_products};
}  // namespace amx
}  // namespace mla_opt

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
