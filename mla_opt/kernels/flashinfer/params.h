// A problem in the parameters of FlashInfer's kernel (`flashinfer::MLAParams`, of 0.7).
#pragma once

#include "work.h"

namespace mla_opt::cuda {

// Where the rows of all keys lie, and how wide they are there.
struct KeyRows {
  const char* c_kv;
  const char* k_pe;
  int64_t c_width;
  int64_t r_width;
};

inline KeyRows key_rows(const Problem& p) {
  const bool only_new = p.cache_len == 0;
  const void* rows = only_new ? p.latent : p.new_cache ? p.new_cache : p.cache;
  const void* rope = p.new_cache ? p.new_rope_cache : p.rope_cache;
  const int64_t columns = p.kv_lora_rank + p.rope_dim;
  const char* const start = static_cast<const char*>(rows);
  if (only_new || !p.rope_cache) return {start, start + 2 * p.kv_lora_rank, columns, columns};
  return {start, static_cast<const char*>(rope), p.kv_lora_rank, p.rope_dim};
}

template <class Params>
Params make_params(const Problem& p, const WorkArrays& arrays) {
  using Number = typename Params::DTypeQ;
  const KeyRows keys = key_rows(p);
  const auto count = [](int64_t number) { return static_cast<uint32_t>(number); };
  const int64_t columns = p.kv_lora_rank + p.rope_dim;
  Params params{};
  params.q_nope = static_cast<Number*>(const_cast<void*>(p.query));
  params.q_pe = params.q_nope + p.kv_lora_rank;
  params.ckv = reinterpret_cast<Number*>(const_cast<char*>(keys.c_kv));
  params.kpe = reinterpret_cast<Number*>(const_cast<char*>(keys.k_pe));
  params.final_o = static_cast<Number*>(p.output);
  params.final_lse = nullptr;
  params.partial_o = static_cast<Number*>(arrays.partial_o);
  params.partial_lse = arrays.partial_lse;
  params.q_indptr = arrays.q_indptr;
  params.kv_indptr = arrays.kv_indptr;
  params.partial_indptr = arrays.partial_indptr;
  params.merge_packed_offset_start = arrays.merge_packed_offset_start;
  params.merge_packed_offset_end = arrays.merge_packed_offset_end;
  params.merge_partial_packed_offset_start = arrays.merge_partial_packed_offset_start;
  params.merge_partial_packed_offset_end = arrays.merge_partial_packed_offset_end;
  params.merge_partial_stride = arrays.merge_partial_stride;
  params.kv_indices = arrays.kv_indices;
  params.q_len = arrays.q_len;
  params.kv_len = arrays.kv_len;
  params.q_start = arrays.q_start;
  params.kv_start = arrays.kv_start;
  params.kv_end = arrays.kv_end;
  params.work_indptr = arrays.work_indptr;
  params.block_size = count(total_len(p));
  params.num_heads = count(p.heads);
  // Queries and outputs are [B, H, S, ...]: positions are neighbours, heads S rows apart.
  params.q_nope_stride_n = params.q_pe_stride_n = count(columns);
  params.q_nope_stride_h = params.q_pe_stride_h = count(p.query_len * columns);
  params.o_stride_n = count(p.kv_lora_rank);
  params.o_stride_h = count(p.query_len * p.kv_lora_rank);
  params.ckv_stride_n = count(keys.c_width);
  params.ckv_stride_page = count(total_len(p) * keys.c_width);
  params.kpe_stride_n = count(keys.r_width);
  params.kpe_stride_page = count(total_len(p) * keys.r_width);
  params.sm_scale = static_cast<float>(p.scale);
  params.return_lse_base_on_e = false;
  return params;
}

}  // namespace mla_opt::cuda
