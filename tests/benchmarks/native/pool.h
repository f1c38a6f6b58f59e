// Threads that wait for work without sleeping, as ONNX Runtime's do.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  int threads() const;

  // Calls body(state, i) for every i below count; returns when all calls have.
  void run(void (*body)(void*, size_t), size_t count, void* state);

  // Calls work once on each thread, at the same time.
  void everywhere(const std::function<void()>& work);

  // Two mla_opt_parallel_for for a Pool: on all threads, and on the calling one while the others wait,
  // so that nobody else is there to take memory and caches from it.
  static void* on_all(void* pool, void (*body)(void*, size_t), size_t count, void* state);
  static void* on_one(void* pool, void (*body)(void*, size_t), size_t count, void* state);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};
