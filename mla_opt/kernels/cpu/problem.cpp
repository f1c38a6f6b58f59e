#include "problem.h"

#include <cmath>

#include "element.h"
#include "refusal.h"

namespace mla_opt {
namespace {

bool is_floating(int32_t type) {
  return type == MLA_OPT_FLOAT32 || type == MLA_OPT_FLOAT16 || type == MLA_OPT_BFLOAT16 ||
         type == MLA_OPT_FLOAT64;
}

bool check_types(const Problem& p, mla_opt_failure& failure) {
  if (!is_floating(p.type)) return refuse(failure, "query has type %d, which has no kernel", p.type);
  const bool narrower = p.type == MLA_OPT_FLOAT32 &&
                        (p.cache_type == MLA_OPT_FLOAT16 || p.cache_type == MLA_OPT_BFLOAT16);
  const bool quantized = p.type == MLA_OPT_FLOAT32 && is_quantized(p.cache_type);
  if (p.cache_type != p.type && !narrower && !quantized)
    return refuse(failure,
                  "cache is %s, query is %s: they must be equal, or of 8 or 16 bits and float32",
                  type_name(p.cache_type), type_name(p.type));
  if (p.bias && p.bias_type != MLA_OPT_BOOL && p.bias_type != p.type)
    return refuse(failure, "bias is %s, expected bool or %s", type_name(p.bias_type),
                  type_name(p.type));
  return true;
}

bool check_size(const char* name, int64_t size, int64_t least, mla_opt_failure& failure) {
  if (size >= least) return true;
  return refuse(failure, "%s is %lld, at least %lld is needed", name, ll(size), ll(least));
}

bool check_sizes(const Problem& p, mla_opt_failure& failure) {
  return check_size("batch", p.batch, 0, failure) && check_size("heads", p.heads, 0, failure) &&
         check_size("query_len", p.query_len, 0, failure) &&
         check_size("the number of rows of latent", p.new_len, 0, failure) &&
         check_size("the number of rows of cache", p.cache_len, 0, failure) &&
         check_size("kv_lora_rank", p.kv_lora_rank, 1, failure) &&
         check_size("the width of query beyond kv_lora_rank", p.rope_dim, 0, failure);
}

// A product of sizes beyond what memory can hold would overflow the arithmetic on addresses.
bool check_extent(const Problem& p, mla_opt_failure& failure) {
  const double width = static_cast<double>(p.kv_lora_rank) + static_cast<double>(p.rope_dim);
  const double rows = static_cast<double>(p.cache_len) + static_cast<double>(p.new_len) +
                      static_cast<double>(p.heads) * static_cast<double>(p.query_len);
  if (static_cast<double>(p.batch) * rows * width < 0x1p59) return true;
  return refuse(failure, "query, latent and cache together have more than 2^59 elements");
}

bool check_presence(const Problem& p, mla_opt_failure& failure) {
  const bool has_elements = p.batch > 0 && p.heads > 0 && p.query_len > 0;
  if (has_elements && !p.query) return refuse(failure, "query is missing");
  if (has_elements && !p.output) return refuse(failure, "output is missing");
  if (p.new_len > 0 && p.batch > 0 && !p.latent)
    return refuse(failure, "latent is missing, but %lld new rows are claimed", ll(p.new_len));
  if (p.cache && is_quantized(p.cache_type) && !p.rope_cache && p.batch > 0 && p.cache_len > 0)
    return refuse(failure, "rope_cache, which holds the scales of a cache of 8 bits, is missing");
  if (p.even_cache && is_quantized(p.cache_type))
    return refuse(failure, "even_cache is set, but rows of 8 bits have no halves");
  if (p.even_cache && (p.kv_lora_rank + p.rope_dim) % 2)
    return refuse(failure, "even_cache is set, but a row has %lld numbers, which is odd",
                  ll(p.kv_lora_rank + p.rope_dim));
  if (p.even_cache && p.cache && !p.rope_cache)
    return refuse(failure, "rope_cache, which holds the second half of each row, is missing");
  if (p.rope_cache && p.rope_dim == 0 && !is_quantized(p.cache_type) && !p.even_cache)
    return refuse(failure,
                  "rope_cache is given, but query has 0 dims beyond kv_lora_rank; at least 1");
  if (p.past_len && !p.cache && p.cache_len > 0)
    return refuse(failure, "past_len is given without the cache it counts rows of");
  if (p.new_cache && is_split(p) && !p.new_rope_cache && p.batch * new_cache_len(p) > 0)
    return refuse(failure, "new_rope_cache is missing, but rope_cache is given");
  if (p.new_len + p.cache_len == 0)
    return refuse(failure, "latent and cache have 0 rows; at least 1 is needed");
  if (!p.new_cache && p.past_len && p.new_len > 0)
    return refuse(failure, "new_cache is missing, but %lld rows are to be added", ll(p.new_len));
  return true;
}

bool check_past_len(const Problem& p, mla_opt_failure& failure) {
  if (!p.past_len) return true;
  for (int64_t sequence = 0; sequence < p.batch; ++sequence) {
    const int64_t past = p.past_len[sequence];
    if (past < 0 || past > p.cache_len - p.new_len)
      return refuse(failure, "past_len[%lld] is %lld; cache has %lld rows, and %lld are to be added",
                    ll(sequence), ll(past), ll(p.cache_len), ll(p.new_len));
  }
  return true;
}

// Rows in a tensor that holds them packed (there is no second one), or in two.
Segment rows_of(const Problem& p, const void* tensor, const void* second, int32_t type,
                int64_t row) {
  const auto size = static_cast<ptrdiff_t>(element_size(type));
  const auto size_beside = static_cast<ptrdiff_t>(element_size(type_beside(type)));
  const auto front = static_cast<ptrdiff_t>(front_width(p));
  Segment rows{};
  rows.type = type;
  const char* start = static_cast<const char*>(tensor);
  if (second) {
    rows.front_stride = front;
    rows.back_stride = static_cast<ptrdiff_t>(rope_cache_width(p));
    rows.front = start + row * rows.front_stride * size;
    rows.back = static_cast<const char*>(second) + row * rows.back_stride * size_beside;
    if (is_quantized(type)) rows.scales = rows.back + p.rope_dim * size_beside;
  } else {
    rows.front_stride = rows.back_stride = static_cast<ptrdiff_t>(row_width(p));
    rows.front = start + row * rows.front_stride * size;
    rows.back = rows.front + front * size;
  }
  return rows;
}

}  // namespace

bool check(const Problem& problem, mla_opt_failure& failure) {
  failure.message[0] = '\0';
  failure.host_error = nullptr;
  if (problem.struct_size != sizeof(mla_opt_latent_attention))
    return refuse(failure, "the host was built for another version: its struct has %zu bytes, not %zu",
                  problem.struct_size, sizeof(mla_opt_latent_attention));
  if (!std::isfinite(problem.scale))
    return refuse(failure, "scale is %g, which is not a finite number", problem.scale);
  return check_sizes(problem, failure) && check_types(problem, failure) &&
         check_extent(problem, failure) && check_presence(problem, failure) &&
         check_past_len(problem, failure);
}

Segments segments(const Problem& p, int64_t sequence) {
  Segments result{};
  const int64_t valid = valid_len(p, sequence);
  const auto add = [&](Segment rows, int64_t first, int64_t count) {
    if (count <= 0) return;
    rows.first = first;
    rows.count = count;
    result.segment[result.count++] = rows;
  };
  if (in_place(p)) {
    const bool written = writes_cache(p);
    const void* cache = written ? p.new_cache : p.cache;
    const void* rope = written ? p.new_rope_cache : p.rope_cache;
    add(rows_of(p, cache, is_split(p) ? rope : nullptr, p.cache_type, sequence * p.cache_len), 0,
        valid);
    return result;
  }
  if (p.cache)
    add(rows_of(p, p.cache, p.rope_cache, p.cache_type, sequence * p.cache_len), 0, p.cache_len);
  if (writes_cache(p))
    add(rows_of(p, p.new_cache, is_split(p) ? p.new_rope_cache : nullptr, p.cache_type,
                sequence * new_cache_len(p) + p.cache_len),
        p.cache_len, p.new_len);
  else if (p.latent)
    add(rows_of(p, p.latent, nullptr, p.type, sequence * p.new_len), p.cache_len, p.new_len);
  return result;
}

}  // namespace mla_opt
