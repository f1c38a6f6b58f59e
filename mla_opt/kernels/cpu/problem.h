// What every part of the kernel needs to know of a problem, worked out once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "latent_attention.h"
#include "quantized_rows.h"

namespace mla_opt {

// What a host asks for, and what the expanded form (expanded.cpp) asks of the same kernel: a head's
// values in the place of c_kv and its keys in the place of k_pe.
struct Problem : mla_opt_latent_attention {
  bool scores_c_kv = true;   // false: scores are those of k_pe alone, the query is [B, H, S, R]
  int64_t sink_stride = 0;   // elements from the sinks of a sequence to those of the next
};

// Fills failure and returns false for a problem that cannot be computed. Reads past_len, nothing
// else that a pointer leads to.
bool check(const Problem& problem, mla_opt_failure& failure);

// Numbers of a row in the first of two tensors that hold it: c_kv, or one half.
inline int64_t front_width(const Problem& p) {
  return p.even_cache ? (p.kv_lora_rank + p.rope_dim) / 2 : p.kv_lora_rank;
}

// And in the second: k_pe, or the other half.
inline int64_t back_width(const Problem& p) {
  return p.kv_lora_rank + p.rope_dim - front_width(p);
}

// Dims in front that a query has.
inline int64_t scored_front(const Problem& p) { return p.scores_c_kv ? front_width(p) : 0; }

// Dims of c_kv in front; the others, if there are more, begin the back.
inline int64_t rank_in_front(const Problem& p) {
  return front_width(p) < p.kv_lora_rank ? front_width(p) : p.kv_lora_rank;
}

// Dims of c_kv that a query has.
inline int64_t scored_rank(const Problem& p) { return p.scores_c_kv ? p.kv_lora_rank : 0; }

// Dims of a query.
inline int64_t row_width(const Problem& p) { return scored_rank(p) + p.rope_dim; }

// Numbers in a row of rope_cache.
inline int64_t rope_cache_width(const Problem& p) {
  if (p.even_cache) return back_width(p);
  return width_beside(p.cache_type, p.kv_lora_rank, p.rope_dim);
}

// Whether the caches are two tensors.
inline bool is_split(const Problem& p) { return p.rope_cache || is_quantized(p.cache_type); }

inline bool in_place(const Problem& p) { return p.past_len != nullptr; }

inline bool writes_cache(const Problem& p) { return p.new_cache != nullptr; }

// Rows of the new cache of one sequence.
inline int64_t new_cache_len(const Problem& p) {
  return in_place(p) ? p.cache_len : p.cache_len + p.new_len;
}

// Rows that a sequence may attend to, the new ones among them.
inline int64_t valid_len(const Problem& p, int64_t sequence) {
  return (in_place(p) ? p.past_len[sequence] : p.cache_len) + p.new_len;
}

// Queries are taken position by position, the heads of one position side by side: neighbouring
// rows then share their mask. Row m is query position m / H of head m % H.
inline int64_t query_rows(const Problem& p) { return p.query_len * p.heads; }

// Elements before the query (or output) row m of a sequence, for rows of this width.
inline int64_t query_offset(const Problem& p, int64_t sequence, int64_t m, int64_t width) {
  const int64_t head = m % p.heads, position = m / p.heads;
  return ((sequence * p.heads + head) * p.query_len + position) * width;
}

// The last key that query row m may see; -1 for none.
inline int64_t last_key(const Problem& p, int64_t valid, int64_t m) {
  if (!p.causal) return valid - 1;
  const int64_t last = valid - p.query_len + m / p.heads;
  return last < 0 ? -1 : last;
}

// Latent rows that lie one behind the other: keys first .. first + count of a sequence. Each is a run
// of front_width numbers and one of back_width.
struct Segment {
  const char* front;      // of key `first`
  const char* back;       // likewise; unused where it has no width
  const char* scales;     // of key `first`, of a quantized front; as far apart as the back
  ptrdiff_t front_stride; // elements from one row to the next
  ptrdiff_t back_stride;
  int64_t first, count;
  int32_t type;           // of the front; type_beside says that of the back
};

// The codes and the scales of a key of quantized rows.
inline const uint8_t* codes_of(const Segment& rows, int64_t key) {
  return reinterpret_cast<const uint8_t*>(rows.front) + (key - rows.first) * rows.front_stride;
}
inline const BFloat16* scales_of(const Segment& rows, int64_t key) {
  return reinterpret_cast<const BFloat16*>(rows.scales) + (key - rows.first) * rows.back_stride;
}

// The rows of a sequence, in the order of their keys; new rows are read from where they were
// written, so that what is attended to is what is kept.
struct Segments {
  Segment segment[2];
  int count;
};
Segments segments(const Problem& problem, int64_t sequence);

}  // namespace mla_opt
