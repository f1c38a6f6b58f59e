// Writes the new caches where they are no longer the old ones' memory: past rows are copied, new
// rows put behind them. 16 bytes a thread.
#pragma once

#include "rows.cuh"

namespace mla_opt::cuda {

// One of the two tensors of a split cache, or the packed one.
struct CacheTensor {
  const char* from;
  char* to;
  int chunks;        // of a row
  int latent_chunk;  // of a latent row, where its part starts
};

MLA_OPT_DEVICE CacheTensor cache_tensor(const Arguments& a, bool is_rope) {
  if (is_rope)
    return {static_cast<const char*>(a.rope_cache), static_cast<char*>(a.new_rope_cache),
            a.rope / 8, a.rank / 8};
  return {static_cast<const char*>(a.cache), static_cast<char*>(a.new_cache),
          (a.rope_cache ? a.rank : a.rank + a.rope) / 8, 0};
}

MLA_OPT_DEVICE int new_cache_len(const Arguments& a) {
  return a.past_len ? a.cache_len : a.cache_len + a.new_len;
}

// Where the row of a new cache comes from.
MLA_OPT_DEVICE const char* source_of_row(const Arguments& a, const CacheTensor& tensor,
                                         const Sequence& s, int row) {
  const int fresh = row - s.past;
  if (fresh < 0 || fresh >= a.new_len)
    return tensor.from + (int64_t{s.index} * a.cache_len + row) * tensor.chunks * 16;
  return static_cast<const char*>(a.latent) +
         ((int64_t{s.index} * a.new_len + fresh) * ((a.rank + a.rope) / 8) + tensor.latent_chunk) *
             16;
}

MLA_OPT_DEVICE void write_tensor(const Arguments& a, const CacheTensor& tensor) {
  const int64_t rows = int64_t{a.batch} * new_cache_len(a), all = rows * tensor.chunks;
  const int64_t step = int64_t{block_count()} * thread_count();
  for (int64_t i = int64_t{block_index()} * thread_count() + thread_index(); i < all; i += step) {
    const int64_t row = i / tensor.chunks;
    const int chunk = static_cast<int>(i - row * tensor.chunks);
    const Sequence s = sequence_of(a, static_cast<int>(row / new_cache_len(a)));
    const char* from = source_of_row(a, tensor, s, static_cast<int>(row % new_cache_len(a)));
    reinterpret_cast<Chunk*>(tensor.to)[i] = reinterpret_cast<const Chunk*>(from)[chunk];
  }
}

MLA_OPT_DEVICE void write_cache(const Arguments& a) {
  write_tensor(a, cache_tensor(a, false));
  if (a.rope_cache) write_tensor(a, cache_tensor(a, true));
}

}  // namespace mla_opt::cuda
