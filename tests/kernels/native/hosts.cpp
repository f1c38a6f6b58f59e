#include "hosts.h"

#include <atomic>
#include <thread>
#include <vector>

#include "../../../mla_opt/kernels/cpu/threads.h"

namespace {

void run_on_threads(Host& host, void (*body)(void*, size_t), size_t count, void* state) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < count; i = next++) {
      if (host.races) ++host.counted;
      body(state, i);
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < host.threads; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
}

}  // namespace

void* run_tasks(void* opaque, void (*body)(void*, size_t), size_t count, void* state) {
  Host& host = *static_cast<Host*>(opaque);
  host.called = true;
  switch (host.order) {
    case Order::kForwards:
      for (size_t i = 0; i < count; ++i) body(state, i);
      return nullptr;
    case Order::kBackwards:
      for (size_t i = count; i > 0; --i) body(state, i - 1);
      return nullptr;
    case Order::kThreads:
      run_on_threads(host, body, count, state);
      return nullptr;
    case Order::kPool: {
      mla_opt_threads threads{host.threads, nullptr};
      return mla_opt_run_on_threads(&threads, body, count, state);
    }
    case Order::kFailing:
      for (size_t i = 0; i < count / 2; ++i) body(state, i);
      return opaque;
  }
  return nullptr;
}
