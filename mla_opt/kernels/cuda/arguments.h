// What the kernels are told: a problem and its plan, in the numbers that a device computes with.
#pragma once

#include <cstdint>

#include "plan.h"

namespace mla_opt::cuda {

enum class BiasKind : int { kNone, kBoolean, kAdditive };

struct Arguments {
  const void* query;
  const void* latent;
  const void* cache;
  const void* rope_cache;  // null: packed
  const int32_t* past_len; // null: growing
  const void* bias;
  const void* sink;
  void* output;
  void* new_cache;
  void* new_rope_cache;
  float* parts;  // one for each block, when there are splits

  int64_t bias_strides[4];
  BiasKind bias_kind;
  int batch;
  int heads;
  int query_len;
  int new_len;
  int cache_len;
  int rank;
  int rope;
  int row_tiles;
  int splits;
  bool causal;
  bool appends;  // the attention itself writes the new rows into the buffer
  float scale;
};

Arguments make_arguments(const Problem& problem, const Plan& plan, void* workspace);

// Whether the new caches share the memory of the old ones, so that new rows are all there is to write.
bool is_aliased(const Problem& problem);

}  // namespace mla_opt::cuda
