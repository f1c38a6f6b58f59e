// Any machine: 16 registers of 4 floats, which every 64-bit processor has in some form.
#include <math.h>

#include "copy.h"
#include "element.h"
#include "heads.h"
#include "tier.h"

#define LANES 4
#define SCORE_VECTORS 2
#define SCORE_KEYS_WIDE 4
#define SCORE_KEYS_ONE 8
#define VALUE_VECTORS 2
#define VALUE_ROWS 4

namespace mla_opt {
namespace portable {
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
extern const Tier tier = {"portable", runs_here, LANES,  partial_stride, query_bytes,
                          pack_query, attend,    finish, &head_products};
}  // namespace portable
}  // namespace mla_opt
