// How a problem is cut into tasks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem.h"

namespace mla_opt {

struct Tier;

// One task is one tile of query rows against one part of the keys of one sequence.
struct Plan {
  int64_t tile_rows;       // query rows in a tile, the last one may have fewer
  int64_t padded_rows;     // the same up to full vectors
  int64_t tiles;           // tiles of one sequence
  int64_t keys_per_split;
  int64_t splits;          // of the longest sequence; 1: tasks write the output themselves
  int64_t tasks;           // sequences * tiles * splits
  size_t query_bytes;      // of one packed tile
  size_t partial_floats;   // one task's unnormalised output, maxima and sums
  size_t partial_stride;   // floats in a row of the unnormalised output
};

Plan make_plan(const Problem& problem, const Tier& tier);

}  // namespace mla_opt
