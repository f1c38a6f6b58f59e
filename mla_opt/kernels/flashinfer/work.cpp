#include "work.h"

#include <algorithm>

#include "../cuda/check.h"

namespace mla_opt::cuda {
namespace {

constexpr int kItemArrays = 8, kBlockArrays = 5;
// As many as no device has more of.
constexpr int kUnknownMultiprocessors = 192;
// FlashInfer counts elements and rows in 32 bits.
constexpr int64_t kMost = int64_t{1} << 31;

int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

size_t round_up(size_t size) { return (size + 15) / 16 * 16; }

bool has_dims(const Problem& p) { return p.kv_lora_rank == 512 && p.rope_dim == 64; }

// Rows are all in one tensor: the buffer, the longer cache, or what alone is given.
bool has_rows_in_one_place(const Problem& p) {
  return in_place(p) || p.new_len == 0 || p.cache_len == 0 || p.new_cache;
}

bool counts_fit(const Problem& p) {
  const int64_t columns = p.kv_lora_rank + p.rope_dim, rows = p.batch * p.heads * p.query_len;
  return rows * columns < kMost && rows * p.heads < kMost && p.batch * total_len(p) < kMost &&
         total_len(p) * columns < kMost;
}

}  // namespace

bool flashinfer_takes(const Problem& p) {
  const bool masked = p.causal && p.query_len > 1;
  return has_queries(p) && has_dims(p) && !p.bias && !p.sink && !masked && p.scale > 0 &&
         has_rows_in_one_place(p) && counts_fit(p);
}

Work make_work(const Problem& p, int blocks) {
  const int64_t tiles = divide_up(p.heads * p.query_len, kWorkRows), all = tiles * p.batch;
  // Parts are put together by blocks, one tile each: there must be as many blocks as tiles.
  const int64_t splits =
      std::max(int64_t{1}, std::min(blocks / all, divide_up(total_len(p), kWorkKeys)));
  Work work{};
  work.tiles = static_cast<int>(tiles);
  work.splits = static_cast<int>(splits);
  work.items = static_cast<int>(all * splits);
  work.blocks = std::min(blocks, work.items);
  return work;
}

size_t place_arrays(const Problem& p, const Work& work, void* workspace, WorkArrays& arrays) {
  auto* next = static_cast<char*>(workspace);
  const auto take = [&](int64_t count, size_t size) {
    char* const start = next;
    next += round_up(static_cast<size_t>(count) * size);
    return start;
  };
  for (int32_t** array : {&arrays.q_indptr, &arrays.kv_indptr, &arrays.partial_indptr, &arrays.q_len,
                          &arrays.kv_len, &arrays.q_start, &arrays.kv_start, &arrays.kv_end})
    *array = reinterpret_cast<int32_t*>(take(work.items, 4));
  arrays.work_indptr = reinterpret_cast<int32_t*>(take(work.blocks + 1, 4));
  for (int32_t** array :
       {&arrays.merge_packed_offset_start, &arrays.merge_packed_offset_end,
        &arrays.merge_partial_packed_offset_start, &arrays.merge_partial_packed_offset_end,
        &arrays.merge_partial_stride})
    *array = reinterpret_cast<int32_t*>(take(work.blocks, 4));
  arrays.kv_indices = reinterpret_cast<int32_t*>(take(p.batch, 4));
  const int64_t rows = work.splits > 1 ? int64_t{work.items} * kWorkRows : 0;
  arrays.partial_lse = reinterpret_cast<float*>(take(rows, 4));
  arrays.partial_o = take(rows * p.kv_lora_rank, 2);
  return static_cast<size_t>(next - static_cast<char*>(workspace));
}

size_t flashinfer_workspace_bound(const Problem& p, int multiprocessors) {
  if (!has_queries(p) || !has_dims(p)) return 0;
  const int64_t blocks = multiprocessors > 0 ? multiprocessors : kUnknownMultiprocessors;
  const int64_t tiles = divide_up(p.heads * p.query_len, kWorkRows) * p.batch;
  const int64_t numbers = kItemArrays * (tiles + blocks) + (kBlockArrays + 1) * blocks + 1 + p.batch;
  const int64_t rows = blocks * kWorkRows;
  return static_cast<size_t>(4 * numbers + rows * (4 + 2 * p.kv_lora_rank)) +
         16 * (kItemArrays + kBlockArrays + 4);
}

bool launch_flashinfer(const Problem& p, const Arguments& arguments, int multiprocessors,
                       void* workspace, size_t workspace_size, void* stream,
                       mla_opt_failure& failure) {
  const int planned = multiprocessors > 0 ? multiprocessors : kUnknownMultiprocessors;
  const Work work = make_work(p, std::max(std::min(blocks_at_once(), planned), 1));
  WorkArrays arrays{};
  const size_t needed = place_arrays(p, work, workspace, arrays);
  if (!workspace || workspace_size < needed)
    return refuse(failure, "the workspace has %zu bytes, %zu are needed",
                  workspace ? workspace_size : 0, needed);
  return start_work(p, arguments, work, arrays, stream, failure) &&
         start_flashinfer(p, work, arrays, stream, failure);
}

}  // namespace mla_opt::cuda
