// A problem of multi-head latent attention: checked, and given to the form that takes less time.
#include "multi_head.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "multi_head_call.h"

namespace mla_opt {
namespace {

int refuse(mla_opt_failure& failure, const char* name, int64_t size, int64_t least) {
  std::snprintf(failure.message, sizeof failure.message, "%s is %lld, at least %lld is needed", name,
                static_cast<long long>(size), static_cast<long long>(least));
  return 1;
}

int fail(mla_opt_failure& failure, const char* message) {
  std::snprintf(failure.message, sizeof failure.message, "%s", message);
  return 1;
}

int check_dims(const Call& c, mla_opt_failure& failure) {
  const auto& p = c.problem;
  if (p.nope_dim < 0) return refuse(failure, "qk_nope_head_dim", p.nope_dim, 0);
  if (p.v_dim < 1) return refuse(failure, "v_head_dim", p.v_dim, 1);
  if (query_width(c) < 1) return refuse(failure, "the width of query", query_width(c), 1);
  const double weights = static_cast<double>(c.attention.heads) *
                         (static_cast<double>(p.nope_dim) + static_cast<double>(p.v_dim)) *
                         static_cast<double>(c.attention.kv_lora_rank);
  const double queries = static_cast<double>(c.attention.batch) *
                         static_cast<double>(c.attention.heads) *
                         static_cast<double>(c.attention.query_len) *
                         static_cast<double>(query_width(c) + p.v_dim);
  if (weights >= 0x1p59 || queries >= 0x1p59)
    return fail(failure, "query or kv_b has more than 2^59 elements");
  if (p.form < MLA_OPT_AUTO || p.form > MLA_OPT_EXPANDED)
    return fail(failure, "form is none of auto, absorbed and expanded");
  return check_kv_b(p.kv_b, c.attention.type, failure) ? 0 : 1;
}

// Rows of all sequences together that a query may see.
double rows_seen(const Problem& p) {
  double rows = 0.0;
  for (int64_t sequence = 0; sequence < p.batch; ++sequence)
    rows += static_cast<double>(valid_len(p, sequence));
  return rows;
}

// vdpbf16ps multiplies two pairs where an addition with a product multiplies one.
constexpr double kOfPairs = 0.5;

// What multiplications take, in those of float32 products with weights. Both multiply the same floats:
// 128 tokens of DeepSeek-V2-Lite's dims on 2048 rows take 57 ms absorbed and 89 expanded on tiles, 256
// take 120 and 112 (Intel Xeon, family 6, model 207); with AVX-512 84 and 124, 164 and 152; with AVX2 156
// and 230, 324 and 293. Bfloat16 rows are 2.7 times as fast on tiles as float32 ones, by what
// onnxruntime/crossover.cpp measured of both; those of 8 bits become such. With pairs, the same on
// bfloat16 rows takes 40 and 55, 76 and 62 (AMD EPYC, family 25, model 17, one thread).
struct Costs {
  double absorbed, expanded;  // of attention
  double expansion;           // of a row into keys and values
};

Costs costs_of(const Call& c) {
  const Problem& p = c.attention;
  const int32_t rows = p.cache ? p.cache_type : p.type;
  const bool is_bfloat16 = rows == MLA_OPT_BFLOAT16 || is_quantized(rows);
  if (is_bfloat16 && std::strcmp(current_tier().name, "amx") == 0)
    return {1 / 2.7, p.type == MLA_OPT_BFLOAT16 ? 1 / 2.7 : 1.0, 1.0};
  if (narrow_products(c)) return {kOfPairs, kOfPairs, kOfPairs};
  return {1.0, 1.0, 1.0};
}

// Absorbed attention takes 2 C + R for a query and a key, and C (N + V) for a query; the expanded one
// N + R + V, and C (N + V) for a key.
bool absorbed_is_less(const Call& c) {
  const Problem& p = c.attention;
  const Costs costs = costs_of(c);
  const auto width = [](int64_t size) { return static_cast<double>(size); };
  const double made = width(c.problem.nope_dim + c.problem.v_dim);
  const double expansion = width(p.kv_lora_rank) * made;
  const double seen = rows_seen(p), queries = width(p.batch) * width(p.query_len);
  const double skipped = p.causal ? queries * width(p.query_len - 1) / 2 : 0.0;
  const double pairs = std::max(0.0, seen * width(p.query_len) - skipped);
  const double absorbed =
      pairs * width(2 * p.kv_lora_rank + p.rope_dim) * costs.absorbed + queries * expansion;
  const double expanded =
      pairs * (made + width(p.rope_dim)) * costs.expanded + seen * expansion * costs.expansion;
  return absorbed <= expanded;
}

int32_t form_of(const Call& c) {
  if (c.attention.type == MLA_OPT_FLOAT64) return MLA_OPT_ABSORBED;
  if (c.problem.form == MLA_OPT_EXPANDED)
    return c.attention.query_len > 1 ? MLA_OPT_EXPANDED : MLA_OPT_ABSORBED;
  if (c.problem.form == MLA_OPT_ABSORBED) return MLA_OPT_ABSORBED;
  return absorbed_is_less(c) ? MLA_OPT_ABSORBED : MLA_OPT_EXPANDED;
}

int run(const Call& c, mla_opt_failure& failure) {
  failure.message[0] = '\0';
  failure.host_error = nullptr;
  if (c.problem.struct_size != sizeof c.problem)
    return fail(failure, "the host was built for another version: its struct has another size");
  if (!check(c.attention, failure) || check_dims(c, failure)) return 1;
  if (c.attention.type == MLA_OPT_FLOAT64) return run_absorbed_plain(c, failure);
  return form_of(c) == MLA_OPT_ABSORBED ? run_absorbed(c, failure) : run_expanded(c, failure);
}

template <class T>
void widen(const void* from, int64_t at, int64_t count, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(static_cast<const T*>(from)[at + i]);
}

template <class T>
void narrow(const float* from, int64_t count, void* to, int64_t at) {
  for (int64_t i = 0; i < count; ++i) from_float(from[i], static_cast<T*>(to)[at + i]);
}

}  // namespace

void read_floats(const void* from, int32_t type, int64_t at, int64_t count, float* to) {
  if (type == MLA_OPT_FLOAT32) return widen<float>(from, at, count, to);
  if (type == MLA_OPT_FLOAT16) return widen<Half>(from, at, count, to);
  widen<BFloat16>(from, at, count, to);
}

void write_floats(const float* from, int64_t count, void* to, int32_t type, int64_t at) {
  if (type == MLA_OPT_FLOAT32) return narrow<float>(from, count, to, at);
  if (type == MLA_OPT_FLOAT16) return narrow<Half>(from, count, to, at);
  narrow<BFloat16>(from, count, to, at);
}

}  // namespace mla_opt

extern "C" int mla_opt_multi_head_latent_attention_run(
    const mla_opt_multi_head_latent_attention* problem, mla_opt_parallel_for parallel_for, void* host,
    mla_opt_failure* failure) {
  using namespace mla_opt;
  return run(Call{*problem, Problem{problem->attention}, {parallel_for, host}}, *failure);
}

extern "C" int32_t mla_opt_multi_head_latent_attention_form(
    const mla_opt_multi_head_latent_attention* problem) {
  using namespace mla_opt;
  return form_of(Call{*problem, Problem{problem->attention}, {}});
}
