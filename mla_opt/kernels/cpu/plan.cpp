#include "plan.h"

#include <algorithm>

#include "machine.h"
#include "tier.h"

namespace mla_opt {
namespace {

// Tasks for each processor: enough that one that comes late finds less to do.
constexpr int64_t kTasksPerProcessor = 4;
// Below this many keys a task is not worth its start and the merging of its result.
constexpr int64_t kLeastKeysPerSplit = 128;
constexpr int64_t kSplitStep = 32;
constexpr int64_t kMostTileRows = 128;

int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// As many query rows as fit into half of the second-level cache with their queries and outputs:
// the other half holds the block of keys.
int64_t tile_rows_of(const Problem& p, const Tier& tier) {
  const auto row = static_cast<int64_t>(sizeof(float)) * (row_width(p) + p.kv_lora_rank);
  const int64_t fitting = second_level_cache_bytes() / 2 / row;
  const int64_t step = 2 * tier.lanes;
  const int64_t most = std::clamp(fitting / step * step, step, kMostTileRows);
  const int64_t rows = query_rows(p);
  // Tiles of one size: 5 full ones and a nearly empty one would keep a processor waiting.
  const int64_t tiles = std::max<int64_t>(1, (rows + most - 1) / most);
  return std::min(most, rounded_up((rows + tiles - 1) / tiles, tier.lanes));
}

int64_t longest(const Problem& p) {
  int64_t length = 0;
  for (int64_t sequence = 0; sequence < p.batch; ++sequence)
    length = std::max(length, valid_len(p, sequence));
  return length;
}

}  // namespace

Plan make_plan(const Problem& p, const Tier& tier) {
  Plan plan{};
  const int64_t rows = query_rows(p), keys = longest(p);
  plan.tile_rows = std::max<int64_t>(1, tile_rows_of(p, tier));
  plan.tiles = (rows + plan.tile_rows - 1) / plan.tile_rows;
  const int64_t unsplit = std::max<int64_t>(1, p.batch * plan.tiles);
  const int64_t wanted = (kTasksPerProcessor * processors() + unsplit - 1) / unsplit;
  const int64_t share = rounded_up((keys + wanted - 1) / wanted, kSplitStep);
  plan.keys_per_split = std::max(kLeastKeysPerSplit, share);
  plan.splits = std::max<int64_t>(1, (keys + plan.keys_per_split - 1) / plan.keys_per_split);
  plan.tasks = p.batch * plan.tiles * plan.splits;
  plan.query_bytes = tier.query_bytes(p, plan.tile_rows);
  plan.partial_stride = static_cast<size_t>(tier.partial_stride(p));
  plan.padded_rows = rounded_up(plan.tile_rows, tier.lanes);
  plan.partial_floats = static_cast<size_t>(plan.padded_rows) * (plan.partial_stride + 2);
  return plan;
}

}  // namespace mla_opt
