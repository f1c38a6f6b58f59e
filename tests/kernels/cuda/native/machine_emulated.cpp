// The machine that is an emulation: kernels run when they are started, block after block in random
// order, with the C ABI and the launches of the library.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "../../../../mla_opt/kernels/cuda/check.h"
#include "../../../../mla_opt/kernels/cuda/combine.cuh"
#include "../../../../mla_opt/kernels/cuda/machine.h"
#include "../../../../mla_opt/kernels/cuda/write_cache.cuh"
#include "driver_emulated.h"
#include "emulated_table.h"

namespace mla_opt::cuda {
namespace {

int architecture = 80;
bool has_warpgroups = false;
bool takes_tensor_maps = true;
uint64_t seed = 0;

AttendBlock block_for(const Problem& p, Width width, Memory memory) {
  const bool is_half = p.type == MLA_OPT_FLOAT16;
  if (p.kv_lora_rank == 256) return attend_block_of<256, 32>(is_half, width, memory);
  return p.rope_dim == 0 ? attend_block_of<512, 0>(is_half, width, memory)
                         : attend_block_of<512, 64>(is_half, width, memory);
}

void run_blocks(const Grid& grid, const std::function<void()>& kernel) {
  std::mt19937_64 random(seed++);
  std::vector<int> order(static_cast<size_t>(grid.blocks));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  for (const int block : order)
    emulator::run({block, static_cast<int>(grid.blocks), grid.threads, grid.shared_bytes, random()},
                  kernel);
}

bool start(const Grid& grid, const std::function<void()>& kernel, mla_opt_failure& failure) {
  if (grid.blocks < 1 || grid.threads < 32 || grid.threads > 1024 || grid.threads % 32 ||
      grid.shared_bytes > block_memory(memory_of(architecture)))
    return refuse(failure, "a launch that no machine takes: %lld blocks of %d threads, %d bytes",
                  static_cast<long long>(grid.blocks), grid.threads, grid.shared_bytes);
  submit([=] { run_blocks(grid, kernel); });
  return true;
}

}  // namespace

bool find_device(const Problem&, Device& device, mla_opt_failure&) {
  device = {memory_of(architecture), has_warpgroups};
  return true;
}

int multiprocessors_of_device() { return 1; }

// What CUDA's driver takes: of the sizes that there are, it refuses addresses alone.
bool encode_tensor_map(const Rows& rows, int box_rows, TensorMap& map) {
  if (!takes_tensor_maps || reinterpret_cast<uintptr_t>(rows.start) % 16) return false;
  const emulator::Tensor tensor{static_cast<const char*>(rows.start), rows.count, rows.columns,
                                box_rows, kBoxColumns};
  static_assert(sizeof tensor <= sizeof map);
  std::memcpy(&map, &tensor, sizeof tensor);
  return true;
}

bool start_attend(const Problem& p, Width width, const Arguments& arguments, const Grid& grid, void*,
                  mla_opt_failure& failure) {
  const AttendBlock attend_block = block_for(p, width, memory_of(architecture));
  if (!attend_block) return refuse(failure, "a tile was planned that does not fit");
  const TensorMaps maps = width == Width::kWarpgroups ? make_tensor_maps(p) : TensorMaps{};
  return start(grid, [=] { attend_block(arguments, maps); }, failure);
}

bool start_combine(const Problem& p, int rows, const Arguments& arguments, const Grid& grid, void*,
                   mla_opt_failure& failure) {
  const auto combine_block = p.type == MLA_OPT_FLOAT16 ? combine<Half> : combine<BFloat16>;
  return start(grid, [=] { combine_block(arguments, rows); }, failure);
}

bool start_write_cache(const Arguments& arguments, const Grid& grid, void*,
                       mla_opt_failure& failure) {
  return start(grid, [=] { write_cache(arguments); }, failure);
}

}  // namespace mla_opt::cuda

// For tests: what machine is emulated, and where its random order starts.
extern "C" MLA_OPT_PUBLIC void mla_opt_emulate(int architecture, int has_warpgroups,
                                               uint64_t seed) {
  mla_opt::cuda::architecture = architecture;
  mla_opt::cuda::has_warpgroups = has_warpgroups != 0;
  mla_opt::cuda::seed = seed;
}

// For tests: whether rows can be described to TMA.
extern "C" MLA_OPT_PUBLIC void mla_opt_take_tensor_maps(int takes) {
  mla_opt::cuda::takes_tensor_maps = takes != 0;
}

// For tests: boxes that were copied by TMA since the start.
extern "C" MLA_OPT_PUBLIC int64_t mla_opt_boxes_landed() {
  return mla_opt::emulator::boxes_landed();
}

// For tests: breaks something from now on; 0: nothing.
extern "C" MLA_OPT_PUBLIC void mla_opt_sabotage(int what) {
  mla_opt::emulator::set_sabotage(static_cast<mla_opt::emulator::Sabotage>(what));
}

// For tests: the plan of a problem: tile rows, keys, stages, warps; row tiles, splits, blocks,
// shared bytes, workspace bytes.
extern "C" MLA_OPT_PUBLIC void mla_opt_plan(const mla_opt_latent_attention* problem,
                                            int architecture, int has_warpgroups,
                                            int multiprocessors, int64_t* plan) {
  using namespace mla_opt::cuda;
  const Plan made =
      make_plan(*problem, multiprocessors, {memory_of(architecture), has_warpgroups != 0});
  const int64_t numbers[] = {made.tile.rows,    made.tile.keys, made.tile.stages, made.tile.warps,
                             made.row_tiles,    made.splits,    made.blocks,      made.shared_bytes,
                             static_cast<int64_t>(made.workspace)};
  std::copy(std::begin(numbers), std::end(numbers), plan);
}
