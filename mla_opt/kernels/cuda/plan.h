// How a problem is cut into blocks: from shapes, the architecture and the number of multiprocessors
// alone, so that a captured launch fits whatever the lengths on the device are.
#pragma once

#include <cstddef>
#include <cstdint>

#include "latent_attention_cuda.h"

namespace mla_opt::cuda {

using Problem = mla_opt_latent_attention;

// Shared memory sets architectures apart: 99, 163 or 227 KB for one block.
enum class Memory { kSmall, kMedium, kLarge };

// architecture: 10 * major + minor, of the code that runs (__CUDA_ARCH__ / 10).
constexpr Memory memory_of(int architecture) {
  if (architecture == 80 || architecture == 87) return Memory::kMedium;
  const int major = architecture / 10;
  return major >= 9 && major <= 11 ? Memory::kLarge : Memory::kSmall;
}

// Bytes that a block may have, and that all blocks of a multiprocessor share.
constexpr int block_memory(Memory memory) {
  return (memory == Memory::kSmall ? 99 : memory == Memory::kMedium ? 163 : 227) * 1024;
}
constexpr int multiprocessor_memory(Memory memory) { return block_memory(memory) + 1024; }

// A device as far as it decides which kernels run.
struct Device {
  Memory memory;
  bool has_warpgroups;  // matrix products of four warps (wgmma), which only code for 90a may use
};

enum class Width { kNarrow, kWide, kWarpgroups };

// What one block holds at a time: query rows, and latent rows in a ring of stages. Warps share the
// query rows by 16; the warps of the same rows share keys (of the scores) and dims (of the output).
struct Tile {
  int rows;
  int keys;
  int stages;
  int warps;

  constexpr int warps_per_rows() const { return warps / (rows / 16); }
  constexpr int threads() const { return 32 * warps; }
};

// Narrow: for few heads, where reading the cache is all; on large memory two blocks side by side
// keep loads in flight, on medium memory a third stage does. Wide: for many heads or rows.
// Warpgroups: the same, with twice the keys.
constexpr Tile tile_of(Width width, Memory memory) {
  if (width == Width::kNarrow) return {16, 32, memory == Memory::kMedium ? 3 : 2, 4};
  if (width == Width::kWarpgroups) return {64, 64, 2, 8};
  return {64, 32, memory == Memory::kLarge ? 3 : 2, 8};
}

// Where things lie in shared memory, in bytes.
//
// For warps, rows are 16 bytes apart beyond their size: an odd number of 16-byte columns, so that 8
// rows of ldmatrix meet 8 different groups of banks. For warpgroups, rows are cut into blocks of 128
// bytes, and in these the 16-byte column c of row r lies at c ^ r % 8, which is how wgmma knows them.
struct Layout {
  int row_bytes;
  int weight_row_bytes;
  int latent;
  int stage;  // bytes of one
  int weights;
  int maxima;
  int sums;
  int barriers;  // of copies in bulk, one for each stage
  int size;
};

constexpr int kSwizzledRow = 128;
constexpr int kSwizzledAlignment = 1024;
constexpr int kBarrierBytes = 8;

constexpr Layout layout_of(Width width, Tile tile, int rank, int rope) {
  const bool swizzled = width == Width::kWarpgroups;
  const int row = 2 * (rank + rope) + (swizzled ? 0 : 16);
  const int weight_row = 2 * tile.keys + (swizzled ? 0 : 16);
  const int latent = tile.rows * row;
  const int weights = latent + tile.stages * tile.keys * row;
  const int maxima = weights + tile.rows * weight_row;
  const int sums = maxima + 4 * tile.rows * tile.warps_per_rows();
  const int barriers = sums + 4 * tile.rows * tile.warps_per_rows();
  const int end = barriers + (swizzled ? tile.stages * kBarrierBytes : 0);
  // Shared memory may start anywhere.
  return {row,    weight_row, latent, tile.keys * row,
          weights, maxima,     sums,   barriers,
          end + (swizzled ? kSwizzledAlignment : 0)};
}

constexpr bool fits(Width width, Memory memory, int rank, int rope) {
  // Blocks of 128 bytes want a multiple of 64 columns; two warpgroups, 256 of the output each.
  if (width == Width::kWarpgroups && (rank != 512 || memory != Memory::kLarge)) return false;
  return layout_of(width, tile_of(width, memory), rank, rope).size <= block_memory(memory);
}

// Blocks that run side by side on a multiprocessor, by memory and by registers (255 of a thread).
constexpr int blocks_per_multiprocessor(Width width, Memory memory, int rank, int rope) {
  const Tile tile = tile_of(width, memory);
  const int by_memory =
      multiprocessor_memory(memory) / (layout_of(width, tile, rank, rope).size + 1024);
  const int by_registers = 256 / tile.threads();
  return by_memory < by_registers ? by_memory : by_registers;
}

constexpr bool has_dims(int64_t rank, int64_t rope) {
  return (rank == 512 && (rope == 64 || rope == 0)) || (rank == 256 && rope == 32);
}

struct Plan {
  Width width;
  Tile tile;
  int shared_bytes;
  int64_t row_tiles;  // of one sequence
  int64_t splits;     // parts that the keys of each row tile are cut into, for different blocks
  int64_t blocks;
  size_t workspace;   // bytes; 0 without splits
};

// For a checked problem that has query rows.
Plan make_plan(const Problem& problem, int multiprocessors, Device device);

// Enough for any plan of this problem or of a smaller one, on any architecture.
size_t workspace_bound(const Problem& problem, int multiprocessors);

inline bool in_place(const Problem& p) { return p.past_len != nullptr; }

// Columns of the scores: T.
inline int64_t total_len(const Problem& p) {
  return in_place(p) ? p.cache_len : p.cache_len + p.new_len;
}

inline bool has_queries(const Problem& p) {
  return p.batch > 0 && p.heads > 0 && p.query_len > 0;
}

}  // namespace mla_opt::cuda
