#include "copy.h"

#include <algorithm>
#include <cstring>

#include "element.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace mla_opt {
namespace {

constexpr int64_t kPartBytes = 1 << 19;
// Below this, what is copied had better stay in the cache for whoever reads it next.
constexpr size_t kStreamedBytes = 1 << 15;

// A copy past the caches: lines that are only written need not be read first.
void stream(char* to, const char* from, size_t bytes) {
#if defined(__SSE2__)
  if (bytes >= kStreamedBytes && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
    const size_t whole = bytes / 64 * 64;
    for (size_t at = 0; at < whole; at += 64)
      for (size_t i = at; i < at + 64; i += 16)
        _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    _mm_sfence();
    to += whole;
    from += whole;
    bytes -= whole;
  }
#endif
  std::memcpy(to, from, bytes);
}

// Both caches, or the packed one.
struct CacheTensor {
  const void* from;
  void* to;
  int64_t width;
  int64_t latent_column;  // where its part of a latent row starts
  int32_t type;

  int64_t row_bytes() const { return width * static_cast<int64_t>(element_size(type)); }
};

int cache_parts(const Problem& p, CacheTensor (&parts)[2]) {
  if (!is_split(p)) {
    parts[0] = {p.cache, p.new_cache, row_width(p), 0, p.cache_type};
    return 1;
  }
  parts[0] = {p.cache, p.new_cache, front_width(p), 0, p.cache_type};
  parts[1] = {p.rope_cache, p.new_rope_cache, rope_cache_width(p), front_width(p),
              type_beside(p.cache_type)};
  return 2;
}

template <class From, class To>
void convert(const void* from, void* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    from_float(to_float(static_cast<const From*>(from)[i]), static_cast<To*>(to)[i]);
}

void write_elements(const Problem& p, const char* from, char* to, int64_t count) {
  if (p.type == p.cache_type)
    std::memcpy(to, from, static_cast<size_t>(count) * element_size(p.type));
  else if (p.cache_type == MLA_OPT_FLOAT16)
    convert<float, Half>(from, to, count);
  else
    convert<float, BFloat16>(from, to, count);
}

void write_quantized(const Problem& p, const char* latent, const CacheTensor (&parts)[2],
                     int64_t at) {
  const auto to = [&](const CacheTensor& part) {
    return static_cast<char*>(part.to) + at * part.row_bytes();
  };
  quantize_row(reinterpret_cast<const float*>(latent), p.cache_type, p.kv_lora_rank, p.rope_dim,
               reinterpret_cast<uint8_t*>(to(parts[0])),
               reinterpret_cast<BFloat16*>(to(parts[1])));
}

}  // namespace

void copy_past_rows(const Problem& p, int64_t sequence, int64_t first, int64_t count) {
  CacheTensor parts[2];
  const int used = cache_parts(p, parts);
  count = std::min(count, p.cache_len - first);
  for (int i = 0; i < used; ++i) {
    const int64_t row = parts[i].row_bytes();
    const int64_t from = sequence * p.cache_len + first;
    const int64_t to = sequence * new_cache_len(p) + first;
    stream(static_cast<char*>(parts[i].to) + to * row,
           static_cast<const char*>(parts[i].from) + from * row,
           static_cast<size_t>(count * row));
  }
}

void write_new_rows(const Problem& p, int64_t sequence) {
  CacheTensor parts[2];
  const int used = cache_parts(p, parts);
  const auto size = static_cast<int64_t>(element_size(p.type));
  const int64_t past = valid_len(p, sequence) - p.new_len;
  for (int64_t row = 0; row < p.new_len; ++row) {
    const char* latent = static_cast<const char*>(p.latent) +
                         (sequence * p.new_len + row) * row_width(p) * size;
    const int64_t at = sequence * new_cache_len(p) + past + row;
    if (is_quantized(p.cache_type)) {
      write_quantized(p, latent, parts, at);
      continue;
    }
    for (int i = 0; i < used; ++i)
      write_elements(p, latent + parts[i].latent_column * size,
                     static_cast<char*>(parts[i].to) + at * parts[i].row_bytes(), parts[i].width);
  }
}

bool copies_buffer(const Problem& p) {
  return in_place(p) && writes_cache(p) &&
         (p.cache != p.new_cache || p.rope_cache != p.new_rope_cache);
}

namespace {

int64_t bytes_of(const Problem& p, const CacheTensor& part) {
  if (part.from == part.to) return 0;
  return p.batch * p.cache_len * part.row_bytes();
}

int64_t parts_of(const Problem& p, const CacheTensor& part) {
  return (bytes_of(p, part) + kPartBytes - 1) / kPartBytes;
}

}  // namespace

int64_t buffer_parts(const Problem& p) {
  if (!copies_buffer(p)) return 0;
  CacheTensor parts[2];
  const int used = cache_parts(p, parts);
  int64_t count = 0;
  for (int i = 0; i < used; ++i) count += parts_of(p, parts[i]);
  return count;
}

void copy_buffer_part(const Problem& p, int64_t part) {
  CacheTensor parts[2];
  cache_parts(p, parts);
  const int64_t first = parts_of(p, parts[0]);
  const CacheTensor& cache = part < first ? parts[0] : parts[1];
  const int64_t start = (part < first ? part : part - first) * kPartBytes;
  stream(static_cast<char*>(cache.to) + start, static_cast<const char*>(cache.from) + start,
         static_cast<size_t>(std::min(kPartBytes, bytes_of(p, cache) - start)));
}

}  // namespace mla_opt
