// What the tensor memory accelerator (TMA) is told of the tensors that hold keys: made for each
// launch, and handed to the kernel by value, so that a captured launch keeps its own.
#pragma once

#include "plan.h"

namespace mla_opt::cuda {

// Of one tensor; opaque, in the form that the machine wants.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

// Dense rows of 16-bit numbers.
struct Rows {
  const void* start;
  int64_t count;
  int64_t columns;
};

struct TensorMaps {
  TensorMap cache;       // packed; or c_kv, where the cache is split
  TensorMap rope_cache;  // of a split cache
  TensorMap latent;
  // Without its map, a tensor's keys are copied row by row.
  bool has_cache;
  bool has_latent;
};

// Of kernels that copy row by row.
struct NoMaps {};

// What one instruction copies: as many columns as a swizzled row has.
constexpr int kBoxColumns = kSwizzledRow / 2;

// For warpgroups. Leaves out what TMA does not take, and tensors without a whole tile of keys.
TensorMaps make_tensor_maps(const Problem& problem);

}  // namespace mla_opt::cuda
