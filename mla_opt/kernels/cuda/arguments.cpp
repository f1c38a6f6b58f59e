#include "arguments.h"

namespace mla_opt::cuda {
namespace {

BiasKind bias_kind(const Problem& p) {
  if (!p.bias) return BiasKind::kNone;
  return p.bias_type == MLA_OPT_BOOL ? BiasKind::kBoolean : BiasKind::kAdditive;
}

void set_sizes(const Problem& p, Arguments& a) {
  a.batch = static_cast<int>(p.batch);
  a.heads = static_cast<int>(p.heads);
  a.query_len = static_cast<int>(p.query_len);
  a.new_len = static_cast<int>(p.new_len);
  a.cache_len = static_cast<int>(p.cache_len);
  a.rank = static_cast<int>(p.kv_lora_rank);
  a.rope = static_cast<int>(p.rope_dim);
  a.scale = static_cast<float>(p.scale);
}

}  // namespace

bool is_aliased(const Problem& p) {
  return in_place(p) && p.cache == p.new_cache &&
         (!p.rope_cache || p.rope_cache == p.new_rope_cache);
}

Arguments make_arguments(const Problem& p, const Plan& plan, void* workspace) {
  Arguments a{};
  a.query = p.query;
  a.latent = p.latent;
  a.cache = p.cache;
  a.rope_cache = p.rope_cache;
  a.past_len = p.past_len;
  a.bias = p.bias;
  a.sink = p.sink;
  a.output = p.output;
  a.new_cache = p.new_cache;
  a.new_rope_cache = p.new_rope_cache;
  a.parts = plan.splits > 1 ? static_cast<float*>(workspace) : nullptr;
  for (int axis = 0; axis < 4; ++axis) a.bias_strides[axis] = p.bias_strides[axis];
  a.bias_kind = bias_kind(p);
  set_sizes(p, a);
  a.row_tiles = static_cast<int>(plan.row_tiles);
  a.splits = static_cast<int>(plan.splits);
  a.causal = p.causal != 0;
  a.appends = is_aliased(p) && p.new_len > 0;
  return a;
}

}  // namespace mla_opt::cuda
