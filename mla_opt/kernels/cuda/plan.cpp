#include "plan.h"

#include <algorithm>

namespace mla_opt::cuda {
namespace {

// Splits are only made while there are this many times fewer blocks than run at once: what they
// write has then a bound, whatever the shapes.
constexpr int64_t kWaves = 4;
// More than this, and putting the parts together takes too long.
constexpr int64_t kMostSplits = 256;
constexpr Memory kMemories[] = {Memory::kSmall, Memory::kMedium, Memory::kLarge};
constexpr Width kWidths[] = {Width::kNarrow, Width::kWide, Width::kWarpgroups};

int64_t divide_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

int64_t query_rows(const Problem& p) { return p.heads * p.query_len; }

bool fits(const Problem& p, Width width, Memory memory) {
  return fits(width, memory, static_cast<int>(p.kv_lora_rank), static_cast<int>(p.rope_dim));
}

// Wide as soon as narrow tiles would read the cache three times.
Width width_for(const Problem& p, Device device) {
  if (query_rows(p) <= 32) return Width::kNarrow;
  if (device.has_warpgroups && fits(p, Width::kWarpgroups, device.memory))
    return Width::kWarpgroups;
  return fits(p, Width::kWide, device.memory) ? Width::kWide : Width::kNarrow;
}

int64_t slots_of(const Problem& p, Width width, int multiprocessors, Memory memory) {
  return int64_t{std::max(multiprocessors, 1)} *
         blocks_per_multiprocessor(width, memory, static_cast<int>(p.kv_lora_rank),
                                   static_cast<int>(p.rope_dim));
}

// Time of a launch in units of one tile of keys: rounds of blocks, each with its share of the tiles
// and what it takes to start and to write its part, then the reading of all parts.
double cost(int64_t row_tiles, int64_t key_tiles, int64_t splits, int64_t slots) {
  const auto rounds = static_cast<double>(divide_up(row_tiles * splits, slots));
  const auto share = static_cast<double>(divide_up(key_tiles, splits));
  if (splits == 1) return rounds * (share + 1);
  return rounds * (share + 2) + 2 + static_cast<double>(splits) / 32;
}

// row_tiles: of all sequences together.
int64_t choose_splits(int64_t row_tiles, int64_t key_tiles, int64_t slots) {
  const int64_t most = std::min({key_tiles, kMostSplits, kWaves * slots / row_tiles});
  int64_t best = 1;
  for (int64_t splits = 2; splits <= most; ++splits)
    if (cost(row_tiles, key_tiles, splits, slots) < cost(row_tiles, key_tiles, best, slots))
      best = splits;
  return best;
}

// A part: of each query row the weighted sum of c_kv, the greatest score, the sum of weights.
size_t part_bytes(Tile tile, int64_t rank) {
  return static_cast<size_t>(tile.rows) * (static_cast<size_t>(rank) + 2) * sizeof(float);
}

}  // namespace

Plan make_plan(const Problem& p, int multiprocessors, Device device) {
  Plan plan{};
  plan.width = width_for(p, device);
  plan.tile = tile_of(plan.width, device.memory);
  plan.shared_bytes = layout_of(plan.width, plan.tile, static_cast<int>(p.kv_lora_rank),
                                static_cast<int>(p.rope_dim))
                          .size;
  plan.row_tiles = divide_up(query_rows(p), plan.tile.rows);
  plan.splits = choose_splits(plan.row_tiles * p.batch, divide_up(total_len(p), plan.tile.keys),
                              slots_of(p, plan.width, multiprocessors, device.memory));
  plan.blocks = plan.row_tiles * p.batch * plan.splits;
  if (plan.splits > 1)
    plan.workspace = static_cast<size_t>(plan.blocks) * part_bytes(plan.tile, p.kv_lora_rank);
  return plan;
}

size_t workspace_bound(const Problem& p, int multiprocessors) {
  if (!has_queries(p)) return 0;
  size_t bound = 0;
  for (const Memory memory : kMemories)
    for (const Width width : kWidths) {
      const Tile tile = tile_of(width, memory);
      // Never what could need less of it when a problem grows: the number of splits, for one.
      const int64_t rows = divide_up(query_rows(p), tile.rows) * p.batch;
      const int64_t splits =
          std::min(divide_up(p.cache_len + p.new_len, tile.keys), kMostSplits);
      const int64_t blocks =
          std::min(rows * splits, kWaves * slots_of(p, width, multiprocessors, memory));
      bound = std::max(bound, static_cast<size_t>(blocks) * part_bytes(tile, p.kv_lora_rank));
    }
  return bound;
}

}  // namespace mla_opt::cuda
