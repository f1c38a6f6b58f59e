#include "operands.h"

#include "../cpu/quantized_rows.h"
#include "../cpu/refusal.h"

namespace mla_opt {
namespace {

const char* const kNames[kInputCount] = {"query", "latent", "cache",     "past_len",
                                         "bias",  "sink",   "rope_cache"};

bool check_rank(Input input, const Operand& operand, int64_t rank, mla_opt_failure& failure) {
  if (operand.rank == rank) return true;
  return refuse(failure, "%s has rank %lld, expected %lld", kNames[input], ll(operand.rank),
                ll(rank));
}

bool check_dim(Input input, const char* what, int64_t size, int64_t expected,
               mla_opt_failure& failure) {
  if (size == expected) return true;
  return refuse(failure, "%s has %s %lld, expected %lld", kNames[input], what, ll(size),
                ll(expected));
}

// Latent rows [B, 1, any, width].
bool check_rows(Input input, const Operand& rows, int64_t batch, int64_t width,
                mla_opt_failure& failure) {
  if (!rows.given) return true;
  return check_rank(input, rows, 4, failure) &&
         check_dim(input, "batch", rows.dims[0], batch, failure) &&
         check_dim(input, "axis 1", rows.dims[1], 1, failure) &&
         check_dim(input, "width", rows.dims[3], width, failure);
}

bool check_vector(Input input, const Operand& vector, int64_t size, mla_opt_failure& failure) {
  if (!vector.given) return true;
  if (!check_rank(input, vector, 1, failure)) return false;
  if (vector.dims[0] == size) return true;
  return refuse(failure, "%s has %lld elements, expected %lld", kNames[input], ll(vector.dims[0]),
                ll(size));
}

bool check_presence(const Operand (&in)[kInputCount], mla_opt_failure& failure) {
  if (!in[kQuery].given) return refuse(failure, "query is missing");
  if (!in[kLatent].given && !in[kCache].given)
    return refuse(failure, "neither latent nor cache is given, so there are no keys");
  if (in[kPastLen].given && !in[kCache].given)
    return refuse(failure, "past_len is given without the cache it counts rows of");
  if (in[kRopeCache].given && !in[kCache].given)
    return refuse(failure, "rope_cache is given without cache, its other half");
  return true;
}

bool check_query(const Operand& query, int64_t rank, mla_opt_failure& failure) {
  if (!check_rank(kQuery, query, 4, failure)) return false;
  if (rank >= 1 && rank <= query.dims[3]) return true;
  return refuse(failure, "kv_lora_rank is %lld, but query has width %lld", ll(rank),
                ll(query.dims[3]));
}

// Whether two caches hold halves of rows: the first is half as wide as these, and that is not C.
bool has_halves(const Operand (&in)[kInputCount], int64_t rank) {
  const Operand& first = in[kCache];
  if (!first.given || !in[kRopeCache].given || is_quantized(first.type) || first.rank != 4)
    return false;
  return first.dims[3] != rank && 2 * first.dims[3] == in[kQuery].dims[3];
}

// Numbers in a row of each of the caches.
struct Widths {
  int64_t cache, rope_cache;
};

Widths widths_of(const Operand (&in)[kInputCount], int64_t rank) {
  const int64_t width = in[kQuery].dims[3];
  if (has_halves(in, rank)) return {width / 2, width / 2};
  const bool is_split = in[kRopeCache].given || is_quantized(in[kCache].type);
  return {is_split ? rank : width, width_beside(in[kCache].type, rank, width - rank)};
}

bool check_rope_cache(const Operand (&in)[kInputCount], int64_t batch, int64_t width,
                      mla_opt_failure& failure) {
  const int32_t type = in[kCache].type;
  if (!in[kRopeCache].given) {
    if (!in[kCache].given || !is_quantized(type)) return true;
    return refuse(failure, "rope_cache, which holds the scales of a cache of 8 bits, is missing");
  }
  if (in[kRopeCache].type != type_beside(type))
    return refuse(failure, "rope_cache is %s, but cache is %s", type_name(in[kRopeCache].type),
                  type_name(type));
  if (width == 0)
    return refuse(failure,
                  "rope_cache is given, but query has 0 dims beyond kv_lora_rank; at least 1");
  if (!check_rows(kRopeCache, in[kRopeCache], batch, width, failure)) return false;
  if (in[kRopeCache].dims[2] == in[kCache].dims[2]) return true;
  return refuse(failure, "rope_cache has %lld rows, cache has %lld", ll(in[kRopeCache].dims[2]),
                ll(in[kCache].dims[2]));
}

// A bias of rank 1 to 4 that broadcasts to [B, H, S, T]; its strides, aligned on the right.
bool place_bias(const Operand& bias, const Shape& scores, int64_t (&strides)[4],
                mla_opt_failure& failure) {
  if (!bias.given) return true;
  if (bias.rank < 1 || bias.rank > 4)
    return refuse(failure, "bias has rank %lld, expected 1 to 4", ll(bias.rank));
  int64_t stride = 1;
  for (int axis = 3; axis >= 0; --axis) {
    const int64_t own = axis - (4 - bias.rank);
    const int64_t size = own < 0 ? 1 : bias.dims[own];
    if (size != 1 && size != scores.dims[axis])
      return refuse(failure, "bias has size %lld on axis %d of [B, H, S, T], expected 1 or %lld",
                    ll(size), axis, ll(scores.dims[axis]));
    strides[axis] = size == 1 ? 0 : stride;
    stride *= size;
  }
  return true;
}

void fill(const Operand (&in)[kInputCount], const Attributes& attributes,
          mla_opt_latent_attention& p) {
  p = {};
  p.struct_size = sizeof p;
  p.type = in[kQuery].type;
  p.cache_type = in[kCache].given ? in[kCache].type : p.type;
  p.bias_type = in[kBias].type;
  p.causal = attributes.causal;
  p.batch = in[kQuery].dims[0];
  p.heads = in[kQuery].dims[1];
  p.query_len = in[kQuery].dims[2];
  p.new_len = in[kLatent].given ? in[kLatent].dims[2] : 0;
  p.cache_len = in[kCache].given ? in[kCache].dims[2] : 0;
  p.kv_lora_rank = attributes.kv_lora_rank;
  p.rope_dim = in[kQuery].dims[3] - attributes.kv_lora_rank;
  p.scale = attributes.scale;
  p.query = in[kQuery].data;
  p.latent = in[kLatent].data;
  p.cache = in[kCache].data;
  p.past_len = static_cast<const int32_t*>(in[kPastLen].data);
  p.bias = in[kBias].data;
  p.sink = in[kSink].data;
  p.rope_cache = in[kRopeCache].data;
  p.even_cache = has_halves(in, attributes.kv_lora_rank);
}

OutputShapes output_shapes(const Operand (&in)[kInputCount], const mla_opt_latent_attention& p) {
  const bool writes = in[kLatent].given && in[kCache].given;
  const int64_t rows = in[kPastLen].given ? p.cache_len : p.cache_len + p.new_len;
  const int64_t width = in[kCache].given ? in[kCache].dims[3] : 0;
  return {{true, writes, writes && in[kRopeCache].given},
          {{{p.batch, p.heads, p.query_len, p.kv_lora_rank}},
           {{p.batch, 1, rows, width}},
           {{p.batch, 1, rows, widths_of(in, p.kv_lora_rank).rope_cache}}}};
}

}  // namespace

bool make_problem(const Operand (&in)[kInputCount], const Attributes& attributes,
                  mla_opt_latent_attention& problem, OutputShapes& outputs,
                  mla_opt_failure& failure) {
  if (!check_presence(in, failure) || !check_query(in[kQuery], attributes.kv_lora_rank, failure))
    return false;
  const int64_t batch = in[kQuery].dims[0], heads = in[kQuery].dims[1], width = in[kQuery].dims[3];
  const int64_t rank = attributes.kv_lora_rank;
  const Widths cached = widths_of(in, rank);
  if (!check_rows(kLatent, in[kLatent], batch, width, failure) ||
      !check_rows(kCache, in[kCache], batch, cached.cache, failure) ||
      !check_rope_cache(in, batch, cached.rope_cache, failure) ||
      !check_vector(kPastLen, in[kPastLen], batch, failure) ||
      !check_vector(kSink, in[kSink], heads, failure))
    return false;
  fill(in, attributes, problem);
  outputs = output_shapes(in, problem);
  const int64_t total =
      in[kPastLen].given ? problem.cache_len : problem.cache_len + problem.new_len;
  const Shape scores{{batch, heads, problem.query_len, total}};
  return place_bias(in[kBias], scores, problem.bias_strides, failure);
}

}  // namespace mla_opt
