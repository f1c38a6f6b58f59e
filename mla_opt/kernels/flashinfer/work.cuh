// Plans the work of FlashInfer's kernel on the device, and writes new rows into a buffer.
#pragma once

#include "../cuda/rows.cuh"
#include "work.h"

namespace mla_opt::cuda {

// One tile of query rows of one sequence, and one split of its keys.
MLA_OPT_DEVICE void describe_item(const Arguments& a, const Work& w, const WorkArrays& to, int item) {
  const int split = item % w.splits, rest = item / w.splits;
  const int tile = rest % w.tiles;
  const Sequence s = sequence_of(a, rest / w.tiles);
  const Keys keys = keys_of_split(s.valid, split, w.splits, kWorkKeys);
  // Rows of queries are counted from the first of the sequence, in units of one row.
  to.q_indptr[item] = s.index * a.heads * a.query_len;
  to.q_start[item] = tile * kWorkRows;
  to.q_len[item] = a.query_len;
  to.kv_indptr[item] = s.index;
  to.kv_len[item] = s.valid;
  to.kv_start[item] = keys.first;
  to.kv_end[item] = keys.end;
  to.partial_indptr[item] = w.splits > 1 ? item * kWorkRows : -1;
}

// The items that a block takes, and, where there are splits, the tile whose parts it puts together.
MLA_OPT_DEVICE void describe_block(const Arguments& a, const Work& w, const WorkArrays& to,
                                   int block) {
  to.work_indptr[block] = static_cast<int>(int64_t{block} * w.items / w.blocks);
  if (block == w.blocks) return;
  const bool merges = w.splits > 1 && block < a.batch * w.tiles;
  const int tile = block % w.tiles, sequence = block / w.tiles;
  const int left = row_count(a) - tile * kWorkRows;
  const int start = (sequence * a.heads * a.query_len) * a.heads + tile * kWorkRows;
  const int part = block * w.splits * kWorkRows;
  to.merge_packed_offset_start[block] = merges ? start : 0;
  to.merge_packed_offset_end[block] = merges ? start + (left < kWorkRows ? left : kWorkRows) : 0;
  to.merge_partial_packed_offset_start[block] = merges ? part : 0;
  to.merge_partial_packed_offset_end[block] = merges ? part + w.splits * kWorkRows : 0;
  to.merge_partial_stride[block] = kWorkRows;
}

// 16 bytes of a new row.
MLA_OPT_DEVICE void append_chunk(const Arguments& a, int64_t index) {
  const int rank = a.rank / 8, chunks = (a.rank + a.rope) / 8;
  const int64_t row = index / chunks;
  const int chunk = static_cast<int>(index - row * chunks);
  const Sequence s = sequence_of(a, static_cast<int>(row / a.new_len));
  const int64_t to = int64_t{s.index} * a.cache_len + s.past + row % a.new_len;
  const bool is_rope = a.rope_cache && chunk >= rank;
  auto* const tensor = static_cast<Chunk*>(is_rope ? a.new_rope_cache : a.new_cache);
  const int width = !a.rope_cache ? chunks : is_rope ? chunks - rank : rank;
  tensor[to * width + (is_rope ? chunk - rank : chunk)] =
      static_cast<const Chunk*>(a.latent)[index];
}

MLA_OPT_DEVICE void plan_work(const Arguments& a, const Work& w, const WorkArrays& to) {
  const int first = block_index() * thread_count() + thread_index();
  const int step = block_count() * thread_count();
  for (int item = first; item < w.items; item += step) describe_item(a, w, to, item);
  for (int block = first; block <= w.blocks; block += step) describe_block(a, w, to, block);
  for (int sequence = first; sequence < a.batch; sequence += step)
    to.kv_indices[sequence] = sequence;
  if (!a.appends) return;
  const int64_t all = int64_t{a.batch} * a.new_len * ((a.rank + a.rope) / 8);
  for (int64_t index = first; index < all; index += step) append_chunk(a, index);
}

}  // namespace mla_opt::cuda
