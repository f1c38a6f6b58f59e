#include "check.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "../cpu/element.h"

namespace mla_opt::cuda {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 30;
constexpr uintptr_t kAlignment = 16;

long long ll(int64_t value) { return value; }

bool check_types(const Problem& p, mla_opt_failure& failure) {
  if (p.type != MLA_OPT_FLOAT16 && p.type != MLA_OPT_BFLOAT16)
    return refuse(failure, "query is %s: on CUDA there are kernels for float16 and bfloat16",
                  type_name(p.type));
  if (p.cache_len > 0 && p.cache_type != p.type)
    return refuse(failure, "cache is %s, query is %s: on CUDA they must be equal",
                  type_name(p.cache_type), type_name(p.type));
  if (p.bias && p.bias_type != MLA_OPT_BOOL && p.bias_type != p.type)
    return refuse(failure, "bias is %s, expected bool or %s", type_name(p.bias_type),
                  type_name(p.type));
  return true;
}

bool check_size(const char* name, int64_t size, mla_opt_failure& failure) {
  if (size >= 0 && size <= kMostRows) return true;
  return refuse(failure, "%s is %lld, expected 0 to %lld", name, ll(size), ll(kMostRows));
}

bool check_sizes(const Problem& p, mla_opt_failure& failure) {
  if (!has_dims(p.kv_lora_rank, p.rope_dim))
    return refuse(failure,
                  "kv_lora_rank is %lld and the rotary width %lld: on CUDA there are kernels for"
                  " 512 and 64, 256 and 32, 512 and 0",
                  ll(p.kv_lora_rank), ll(p.rope_dim));
  if (!check_size("batch", p.batch, failure) || !check_size("heads", p.heads, failure) ||
      !check_size("query_len", p.query_len, failure) ||
      !check_size("the number of rows of latent", p.new_len, failure) ||
      !check_size("the number of rows of cache", p.cache_len, failure))
    return false;
  // Each factor is at most 2^30: the first product cannot overflow, nor can the other below 2^30.
  const int64_t rows = p.heads * p.query_len, total = p.cache_len + p.new_len;
  if (rows > kMostRows || total > kMostRows || rows * p.batch > kMostRows)
    return refuse(failure,
                  "%lld sequences of %lld query rows and %lld keys are more than the %lld that a"
                  " launch can have",
                  ll(p.batch), ll(rows), ll(total), ll(kMostRows));
  if (total == 0)
    return refuse(failure, "latent and cache have 0 rows; at least 1 is needed");
  return true;
}

bool check_presence(const Problem& p, mla_opt_failure& failure) {
  if (has_queries(p) && !p.query) return refuse(failure, "query is missing");
  if (has_queries(p) && !p.output) return refuse(failure, "output is missing");
  if (p.batch == 0) return true;
  if (p.new_len > 0 && !p.latent)
    return refuse(failure, "latent is missing, but %lld new rows are claimed", ll(p.new_len));
  if (p.cache_len > 0 && !p.cache)
    return refuse(failure, "cache is missing, but %lld rows of it are claimed", ll(p.cache_len));
  if (p.past_len && p.new_len > p.cache_len)
    return refuse(failure, "cache has %lld rows, and %lld are to be added", ll(p.cache_len),
                  ll(p.new_len));
  if (p.even_cache)
    return refuse(failure, "on CUDA there is no kernel for rows whose halves lie in two tensors");
  if (p.rope_cache && p.rope_dim == 0)
    return refuse(failure, "rope_cache is given, but query has 0 dims beyond kv_lora_rank");
  if (p.new_cache && p.rope_cache && !p.new_rope_cache)
    return refuse(failure, "new_rope_cache is missing, but rope_cache is given");
  if (!p.new_cache && p.past_len && p.new_len > 0)
    return refuse(failure, "new_cache is missing, but %lld rows are to be added", ll(p.new_len));
  return true;
}

bool check_alignment(const Problem& p, mla_opt_failure& failure) {
  const struct {
    const char* name;
    const void* address;
  } tensors[] = {{"query", p.query},           {"latent", p.latent},
                 {"cache", p.cache},           {"rope_cache", p.rope_cache},
                 {"output", p.output},         {"new_cache", p.new_cache},
                 {"new_rope_cache", p.new_rope_cache}};
  for (const auto& tensor : tensors)
    if (reinterpret_cast<uintptr_t>(tensor.address) % kAlignment)
      return refuse(failure, "%s is at address %p, which is no multiple of 16 bytes", tensor.name,
                    tensor.address);
  return true;
}

}  // namespace

bool refuse(mla_opt_failure& failure, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(failure.message, sizeof failure.message, format, arguments);
  va_end(arguments);
  return false;
}

bool check_shapes(const Problem& p, mla_opt_failure& failure) {
  failure.message[0] = '\0';
  failure.host_error = nullptr;
  if (p.struct_size != sizeof(Problem))
    return refuse(failure, "the host was built for another version: its struct has %zu bytes, not %zu",
                  p.struct_size, sizeof(Problem));
  return check_sizes(p, failure) && check_types(p, failure);
}

bool check(const Problem& p, mla_opt_failure& failure) {
  if (!check_shapes(p, failure)) return false;
  if (!std::isfinite(static_cast<float>(p.scale)))
    return refuse(failure, "scale is %g, which is not a finite float32", p.scale);
  return check_presence(p, failure) && check_alignment(p, failure);
}

}  // namespace mla_opt::cuda
