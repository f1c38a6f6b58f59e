// What an instruction-set tier offers: the same few functions, compiled for its instructions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "heads.h"
#include "problem.h"

// Compilers that know the tiles of AMX, on the system that lets them be used.
#if !defined(MLA_OPT_HAS_AMX)
#if defined(__x86_64__) && defined(__linux__) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define MLA_OPT_HAS_AMX 1
#else
#define MLA_OPT_HAS_AMX 0
#endif
#endif

namespace mla_opt {

// A run of query rows of one sequence.
struct Tile {
  int64_t sequence;
  int64_t first, count;  // query rows, in the order of problem.h
};

// What a task leaves behind: softmax over its own keys, not yet divided by its sum.
struct Partial {
  float* output;   // [count up to full vectors, partial_stride]
  float* maximum;  // [count up to full vectors]; -inf where nothing was seen
  float* sum;      // likewise
};

// Grows when it is too small and is never given back: one per thread.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();
  // At least this many bytes, aligned to a cache line; null when there is no memory.
  char* reserve(size_t bytes);

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

struct Tier {
  const char* name;
  bool (*runs_here)();
  int lanes;  // query rows in a vector

  // Floats in a row of Partial::output: C rounded up to full vectors.
  int64_t (*partial_stride)(const Problem&);
  // Bytes of a packed tile of this many rows.
  size_t (*query_bytes)(const Problem&, int64_t rows);
  // Packs the queries of a tile, scaled where the tier scales there.
  void (*pack_query)(const Problem&, const Tile&, void* packed);
  // Attends from a tile to keys first_key .. end_key. With copy, the past rows among them are also
  // copied to the new cache. False when there is no memory.
  bool (*attend)(const Problem&, const Tile&, const void* packed, int64_t first_key,
                 int64_t end_key, bool copy, const Partial&, Scratch&);
  // Merges partials, one behind the other, `stride` floats apart, and writes the output rows.
  void (*finish)(const Problem&, const Tile&, const Partial& first, int64_t count, size_t stride);

  // The products around the attention.
  const HeadProducts* heads;
  // Those of bfloat16 rows; null where nothing multiplies such numbers.
  const BFloat16Products* bfloat16_heads = nullptr;
};

// The tier in use.
const Tier& current_tier();

}  // namespace mla_opt
