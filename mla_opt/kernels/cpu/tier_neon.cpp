// NEON: 32 registers of 4 floats.
#include <math.h>

#include "copy.h"
#include "element.h"
#include "heads.h"
#include "tier.h"

#if defined(__aarch64__)

#define LANES 4
#define SCORE_VECTORS 4
#define SCORE_KEYS_WIDE 5
#define SCORE_KEYS_ONE 16
#define VALUE_VECTORS 4
#define VALUE_ROWS 5

namespace mla_opt {
namespace neon {
namespace {
#include "vectors.inl"
#include "widen_any.inl"
#include "dequantize.inl"
#include "products_fp32.inl"
#include "flash.inl"
#include "unpack.inl"
#include "few_rows.inl"
#include "many_rows.inl"

bool runs_here() { return true; }
}  // namespace

extern const HeadProducts head_products = kHeadProducts;
extern const Tier tier = {"neon",     runs_here, LANES,  partial_stride, query_bytes,
                          pack_query, attend,    finish, &head_products};
}  // namespace neon
}  // namespace mla_opt

#endif
