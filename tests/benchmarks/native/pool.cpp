#include "pool.h"

#include <atomic>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

}  // namespace

struct Pool::Shared {
  std::atomic<long> turn{0};
  std::atomic<size_t> next{0}, busy{0};
  std::atomic<bool> end{false};
  void (*body)(void*, size_t) = nullptr;
  void* state = nullptr;
  size_t count = 0;
  std::vector<std::thread> others;

  void work() {
    for (size_t i = next++; i < count; i = next++) body(state, i);
  }

  void wait_and_work() {
    for (long seen = 0;;) {
      while (turn.load(std::memory_order_acquire) == seen) {
        if (end) return;
        pause();
      }
      ++seen;
      work();
      --busy;
    }
  }
};

Pool::Pool(int threads) : shared_(std::make_unique<Shared>()) {
  for (int i = 1; i < threads; ++i)
    shared_->others.emplace_back([shared = shared_.get()] { shared->wait_and_work(); });
}

Pool::~Pool() {
  shared_->end = true;
  for (std::thread& thread : shared_->others) thread.join();
}

int Pool::threads() const { return static_cast<int>(shared_->others.size()) + 1; }

void Pool::run(void (*body)(void*, size_t), size_t count, void* state) {
  Shared& shared = *shared_;
  shared.body = body;
  shared.state = state;
  shared.count = count;
  shared.next = 0;
  shared.busy = shared.others.size();
  shared.turn.fetch_add(1, std::memory_order_release);
  shared.work();
  while (shared.busy) pause();
}

void Pool::everywhere(const std::function<void()>& work) {
  // Nobody leaves before all have come, so each thread takes exactly one.
  struct Meeting {
    const std::function<void()>& work;
    std::atomic<int> missing;
  } meeting{work, {threads()}};
  run(
      [](void* state, size_t) {
        auto& here = *static_cast<Meeting*>(state);
        --here.missing;
        while (here.missing > 0) pause();
        here.work();
      },
      static_cast<size_t>(threads()), &meeting);
}

void* Pool::on_all(void* pool, void (*body)(void*, size_t), size_t count, void* state) {
  static_cast<Pool*>(pool)->run(body, count, state);
  return nullptr;
}

void* Pool::on_one(void*, void (*body)(void*, size_t), size_t count, void* state) {
  for (size_t i = 0; i < count; ++i) body(state, i);
  return nullptr;
}
