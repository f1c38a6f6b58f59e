// A problem from check to output: new rows into the cache, tasks over the keys, merging.
#include <algorithm>
#include <atomic>
#include <cstdio>

#include "copy.h"
#include "plain.h"
#include "plan.h"
#include "problem.h"
#include "run.h"
#include "tier.h"

namespace mla_opt {
namespace {

// Kept by each thread, so that nothing is allocated once warm. What all tasks share is the calling
// thread's, and apart from what it needs as one of those that run tasks.
thread_local Scratch shared_scratch;
thread_local Scratch task_scratch;
thread_local Scratch tile_scratch;

struct Run {
  const Problem& problem;
  const Tier& tier;
  Plan plan;
  Host host;
  char* packed = nullptr;      // all packed tiles, when several tasks read them
  float* partials = nullptr;   // all partial results, when they are to be merged
  std::atomic<bool> no_memory{false};
};

// One step of the run, on all threads. Returns the host's error.
template <void (*Body)(Run&, int64_t)>
void* for_each(Run& run, int64_t count) {
  return on_host<Run, Body>(run.host, run, count);
}

Tile tile_of(const Run& run, int64_t index) {
  const Plan& plan = run.plan;
  const int64_t first = index % plan.tiles * plan.tile_rows;
  return {index / plan.tiles, first, std::min(plan.tile_rows, query_rows(run.problem) - first)};
}

size_t floats_in_lines(size_t count) { return (count + 15) / 16 * 16; }

size_t bytes_in_lines(size_t count) { return (count + 63) / 64 * 64; }

Partial partial_at(const Run& run, float* start) {
  const Plan& plan = run.plan;
  const auto rows = static_cast<size_t>(plan.padded_rows);
  const size_t output = rows * plan.partial_stride;
  return {start, start + output, start + output + rows};
}

// Partials of one tile lie one behind the other.
Partial partial_of(const Run& run, int64_t tile, int64_t split) {
  const size_t stride = floats_in_lines(run.plan.partial_floats);
  const auto index = static_cast<size_t>(tile * run.plan.splits + split);
  return partial_at(run, run.partials + index * stride);
}

void copy_part(Run& run, int64_t part) { copy_buffer_part(run.problem, part); }

void write_rows(Run& run, int64_t sequence) { write_new_rows(run.problem, sequence); }

void pack_tile(Run& run, int64_t index) {
  char* packed = run.packed + static_cast<size_t>(index) * bytes_in_lines(run.plan.query_bytes);
  run.tier.pack_query(run.problem, tile_of(run, index), packed);
}

// Growing caches are copied by the tasks of a sequence's first tile, which read the rows anyway.
bool copies(const Run& run, int64_t tile) {
  return !in_place(run.problem) && writes_cache(run.problem) && tile % run.plan.tiles == 0;
}

void attend_split(Run& run, int64_t index) {
  const int64_t tile = index / run.plan.splits, split = index % run.plan.splits;
  const char* packed =
      run.packed + static_cast<size_t>(tile) * bytes_in_lines(run.plan.query_bytes);
  const int64_t first = split * run.plan.keys_per_split;
  if (!run.tier.attend(run.problem, tile_of(run, tile), packed, first,
                       first + run.plan.keys_per_split, copies(run, tile),
                       partial_of(run, tile, split), task_scratch))
    run.no_memory = true;
}

void finish_tile(Run& run, int64_t tile) {
  run.tier.finish(run.problem, tile_of(run, tile), partial_of(run, tile, 0), run.plan.splits,
                  floats_in_lines(run.plan.partial_floats));
}

// A tile that one task sees through to its output.
void attend_tile(Run& run, int64_t index) {
  const size_t query = bytes_in_lines(run.plan.query_bytes);
  char* buffer = tile_scratch.reserve(query + run.plan.partial_floats * sizeof(float));
  if (!buffer) {
    run.no_memory = true;
    return;
  }
  const Tile tile = tile_of(run, index);
  const Partial partial = partial_at(run, reinterpret_cast<float*>(buffer + query));
  run.tier.pack_query(run.problem, tile, buffer);
  if (run.tier.attend(run.problem, tile, buffer, 0, valid_len(run.problem, tile.sequence),
                      copies(run, index), partial, task_scratch))
    run.tier.finish(run.problem, tile, partial, 1, 0);
  else
    run.no_memory = true;
}

void* attend_in_splits(Run& run) {
  const int64_t tiles = run.problem.batch * run.plan.tiles;
  const size_t packed = static_cast<size_t>(tiles) * bytes_in_lines(run.plan.query_bytes);
  const size_t partials =
      static_cast<size_t>(run.plan.tasks) * floats_in_lines(run.plan.partial_floats);
  run.packed = shared_scratch.reserve(packed + partials * sizeof(float));
  if (!run.packed) {
    run.no_memory = true;
    return nullptr;
  }
  run.partials = reinterpret_cast<float*>(run.packed + packed);
  if (void* error = for_each<pack_tile>(run, tiles)) return error;
  if (void* error = for_each<attend_split>(run, run.plan.tasks)) return error;
  return for_each<finish_tile>(run, tiles);
}

void attend_plain_row(Run& run, int64_t index) {
  const int64_t rows = query_rows(run.problem);
  if (!attend_plain(run.problem, index / rows, index % rows, task_scratch)) run.no_memory = true;
}

void copy_past(Run& run, int64_t sequence) {
  copy_past_rows(run.problem, sequence, 0, run.problem.cache_len);
}

bool grows(const Problem& p) { return !in_place(p) && writes_cache(p); }

void* store(Run& run) {
  if (void* error = for_each<copy_part>(run, buffer_parts(run.problem))) return error;
  if (!writes_cache(run.problem)) return nullptr;
  return for_each<write_rows>(run, run.problem.batch);
}

void* attend(Run& run) {
  const Problem& p = run.problem;
  const bool nothing_asked = query_rows(p) == 0;
  if (grows(p) && (p.type == MLA_OPT_FLOAT64 || nothing_asked))
    if (void* error = for_each<copy_past>(run, p.batch)) return error;
  if (nothing_asked) return nullptr;
  if (p.type == MLA_OPT_FLOAT64)
    return for_each<attend_plain_row>(run, p.batch * query_rows(p));
  if (run.plan.splits == 1) return for_each<attend_tile>(run, run.plan.tasks);
  return attend_in_splits(run);
}

int fail(mla_opt_failure& failure, const char* message) {
  std::snprintf(failure.message, sizeof failure.message, "%s", message);
  return 1;
}

}  // namespace

int verdict(void* host_error, bool no_memory, mla_opt_failure& failure) {
  failure.host_error = host_error;
  if (host_error) return fail(failure, "the host could not run the tasks");
  if (no_memory) return fail(failure, "no memory for the scratch buffers of a thread");
  return 0;
}

int run(const Problem& problem, const Host& host, mla_opt_failure& failure) {
  if (!check(problem, failure)) return 1;
  const Tier& tier = current_tier();
  Run state{problem, tier, make_plan(problem, tier), host};
  void* error = store(state);
  if (!error) error = attend(state);
  return verdict(error, state.no_memory, failure);
}

int store_rows(const Problem& problem, const Host& host, mla_opt_failure& failure) {
  Run state{problem, current_tier(), {}, host};
  void* error = store(state);
  if (!error && grows(problem)) error = for_each<copy_past>(state, problem.batch);
  return verdict(error, false, failure);
}

}  // namespace mla_opt

extern "C" int mla_opt_latent_attention_run(const mla_opt_latent_attention* problem,
                                            mla_opt_parallel_for parallel_for, void* host,
                                            mla_opt_failure* failure) {
  return mla_opt::run(mla_opt::Problem{*problem}, {parallel_for, host}, *failure);
}

extern "C" int mla_opt_kernel_abi_version(void) { return 4; }
