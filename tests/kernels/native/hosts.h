// Hosts of the kernel: ways to run its tasks that ONNX Runtime might choose, and worse ones.
#pragma once

#include <cstddef>

enum class Order { kForwards, kBackwards, kThreads, kPool, kFailing };

struct Host {
  Order order = Order::kForwards;
  int threads = 1;
  bool races = false;  // count without synchronisation, to see whether that is noticed
  bool called = false;
  long counted = 0;
};

// A mla_opt_parallel_for for Host. A failing host runs half of the tasks and returns itself.
void* run_tasks(void* host, void (*body)(void*, size_t), size_t count, void* state);
