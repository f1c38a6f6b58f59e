// Running problems and parts of them on the threads of a host.
#pragma once

#include <cstddef>
#include <cstdint>

#include "problem.h"

namespace mla_opt {

struct Host {
  mla_opt_parallel_for parallel_for;
  void* state;
};

// Body(state, 0 .. count) on all threads. Returns the host's error.
template <class State, void (*Body)(State&, int64_t)>
void* on_host(const Host& host, State& state, int64_t count) {
  if (count <= 0) return nullptr;
  if (count == 1) {
    Body(state, 0);
    return nullptr;
  }
  return host.parallel_for(
      host.state,
      [](void* opaque, size_t i) { Body(*static_cast<State*>(opaque), static_cast<int64_t>(i)); },
      static_cast<size_t>(count), &state);
}

// 0, or 1 with the failure that this is.
int verdict(void* host_error, bool no_memory, mla_opt_failure& failure);

// All of a problem, from check to output.
int run(const Problem& problem, const Host& host, mla_opt_failure& failure);

// Of a problem that has been checked: its new caches alone, past rows and new ones.
int store_rows(const Problem& problem, const Host& host, mla_opt_failure& failure);

}  // namespace mla_opt
