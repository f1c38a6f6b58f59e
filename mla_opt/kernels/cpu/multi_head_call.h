// What the forms of multi-head latent attention share.
#pragma once

#include <cstdint>

#include "multi_head.h"
#include "run.h"
#include "tier.h"

namespace mla_opt {

struct Call {
  const mla_opt_multi_head_latent_attention& problem;
  Problem attention;  // of the problem, as the rest of the kernel takes it
  Host host;
};

inline int64_t query_width(const Call& c) {
  return c.problem.nope_dim + c.attention.rope_dim;
}

// W_UK and W_UV^T of a head, and both.
inline Matrix key_matrix(const Call& c, int64_t head) {
  const auto& p = c.problem;
  return {&p.kv_b, head * (p.nope_dim + p.v_dim), p.nope_dim, c.attention.kv_lora_rank, p.nope_dim};
}
inline Matrix value_matrix(const Call& c, int64_t head) {
  const auto& p = c.problem;
  return {&p.kv_b, head * (p.nope_dim + p.v_dim) + p.nope_dim, p.v_dim, c.attention.kv_lora_rank, 0};
}
inline Matrix head_matrix(const Call& c, int64_t head) {
  const auto& p = c.problem;
  return {&p.kv_b, head * (p.nope_dim + p.v_dim), p.nope_dim + p.v_dim, c.attention.kv_lora_rank, p.nope_dim};
}

// The products that keys and values of the expanded form are made with if they become bfloat16 numbers;
// null: they are of the query's type.
const BFloat16Products* narrow_products(const Call& call);

// Each returns 0, or 1 with a filled failure.
int run_absorbed(const Call& call, mla_opt_failure& failure);
int run_expanded(const Call& call, mla_opt_failure& failure);
// In float64, number by number.
int run_absorbed_plain(const Call& call, mla_opt_failure& failure);

// Elements of a floating-point tensor of 32 or 16 bits, from element `at` on.
void read_floats(const void* from, int32_t type, int64_t at, int64_t count, float* to);
void write_floats(const float* from, int64_t count, void* to, int32_t type, int64_t at);

}  // namespace mla_opt
