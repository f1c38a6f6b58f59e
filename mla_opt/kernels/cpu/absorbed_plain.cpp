// The absorbed form in float64: for models that are kept in it, which nobody does for speed.
#include <algorithm>
#include <atomic>

#include "multi_head_call.h"

namespace mla_opt {
namespace {

thread_local Scratch shared_scratch;

struct Plain {
  const Call& call;
  double* query;   // [B, H, S, C+R]
  double* output;  // [B, H, S, C]
};

int64_t head_of(const Problem& p, int64_t row) { return row / p.query_len % p.heads; }

void absorb_query(Plain& state, int64_t row) {
  const Problem& p = state.call.attention;
  const Matrix matrix = key_matrix(state.call, head_of(p, row));
  const double* from = static_cast<const double*>(p.query) + row * query_width(state.call);
  double* to = state.query + row * row_width(p);
  std::fill_n(to, p.kv_lora_rank, 0.0);
  for (int64_t n = 0; n < matrix.rows; ++n)
    for (int64_t c = 0; c < p.kv_lora_rank; ++c) to[c] += from[n] * number_at(matrix, n, c);
  std::copy_n(from + matrix.rows, p.rope_dim, to + p.kv_lora_rank);
}

void project_output(Plain& state, int64_t row) {
  const Problem& p = state.call.attention;
  const Matrix matrix = value_matrix(state.call, head_of(p, row));
  const double* from = state.output + row * p.kv_lora_rank;
  double* to = static_cast<double*>(p.output) + row * matrix.rows;
  std::fill_n(to, matrix.rows, 0.0);
  for (int64_t v = 0; v < matrix.rows; ++v)
    for (int64_t c = 0; c < p.kv_lora_rank; ++c) to[v] += from[c] * number_at(matrix, v, c);
}

}  // namespace

int run_absorbed_plain(const Call& call, mla_opt_failure& failure) {
  Problem inner = call.attention;
  const int64_t rows = inner.batch * inner.heads * inner.query_len;
  const int64_t queries = rows * row_width(inner), outputs = rows * inner.kv_lora_rank;
  auto* memory = reinterpret_cast<double*>(
      shared_scratch.reserve(static_cast<size_t>(queries + outputs + 8) * sizeof(double)));
  if (!memory) return verdict(nullptr, true, failure);
  Plain state{call, memory, memory + queries};
  if (verdict(on_host<Plain, absorb_query>(call.host, state, rows), false, failure)) return 1;
  inner.query = state.query;
  inner.output = state.output;
  if (run(inner, call.host, failure)) return 1;
  return verdict(on_host<Plain, project_output>(call.host, state, rows), false, failure);
}

}  // namespace mla_opt
