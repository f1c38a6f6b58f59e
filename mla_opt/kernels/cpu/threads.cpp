#include "threads.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace mla_opt {
namespace {

// How often an idle worker looks for the next step of the same call before it goes to sleep: waking
// takes longer than most steps do, but a worker that keeps looking takes the processor from others.
constexpr int kLooks = 4000;

// Tasks 0 .. count, of which whoever has time takes the next.
struct Job {
  void (*body)(void* state, size_t i);
  size_t count;
  void* state;
  std::atomic<size_t> next{0};
  size_t invited = 0;  // workers that may still come, and
  size_t helping = 0;  // that are at it; both guarded by the pool's mutex

  void work() {
    for (size_t i = next++; i < count; i = next++) body(state, i);
  }
};

// As std::condition_variable, whose wait() needs a C++ library as new as the compiler's.
class Condition {
 public:
  template <class Until>
  void wait(std::unique_lock<std::mutex>& lock, Until until) {
    while (!until()) pthread_cond_wait(&condition_, lock.mutex()->native_handle());
  }
  void notify_all() { pthread_cond_broadcast(&condition_); }

 private:
  pthread_cond_t condition_ = PTHREAD_COND_INITIALIZER;
};

class Pool {
 public:
  // Runs the job on the calling thread and on as many workers as there are to help.
  void run(Job& job, size_t workers) {
    if (!invite(job, workers)) return job.work();
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    // Those who have not come yet would find nothing to do.
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
    done_.wait(lock, [&] { return job.helping == 0; });
  }

 private:
  bool invite(Job& job, size_t workers) {
    const std::lock_guard<std::mutex> lock(mutex_);
    try {
      for (; started_ < workers; ++started_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // The system gives no more threads: those that are there, and the caller, do the work.
    }
    try {
      jobs_.push_back(&job);
    } catch (const std::bad_alloc&) {
      return false;
    }
    job.invited = workers;
    ++calls_;
    return true;
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      if (jobs_.empty()) await_jobs(lock);
      Job& job = *jobs_.front();
      if (--job.invited == 0) jobs_.erase(jobs_.begin());
      ++job.helping;
      lock.unlock();
      job.work();
      lock.lock();
      if (--job.helping == 0) done_.notify_all();
    }
  }

  void await_jobs(std::unique_lock<std::mutex>& lock) {
    const unsigned seen = calls_;
    lock.unlock();
    for (int look = 0; look < kLooks && calls_ == seen; ++look) pause();
    lock.lock();
    wake_.wait(lock, [&] { return !jobs_.empty(); });
  }

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
  }

  std::mutex mutex_;
  Condition wake_, done_;
  std::vector<Job*> jobs_;  // that more workers may come to, the oldest first
  std::atomic<unsigned> calls_{0};
  size_t started_ = 0;
};

// Of this process: a fork copies the pool, but none of its workers, and its mutex as it happened to
// be. Pools are never freed, since workers may outlive whatever would free them.
Pool& pool() {
  struct Owned {
    pid_t process;
    Pool pool;
  };
  static std::atomic<Owned*> current{nullptr};
  Owned* owned = current.load(std::memory_order_acquire);
  while (!owned || owned->process != getpid()) {
    Owned* fresh = new Owned{getpid(), {}};
    if (current.compare_exchange_strong(owned, fresh, std::memory_order_acq_rel)) return fresh->pool;
    delete fresh;
  }
  return owned->pool;
}

}  // namespace
}  // namespace mla_opt

extern "C" void* mla_opt_run_on_threads(void* opaque, void (*body)(void* state, size_t i),
                                        size_t count, void* state) {
  const auto& threads = *static_cast<const mla_opt_threads*>(opaque);
  mla_opt::Job job{body, count, state};
  const size_t most = std::min(count, static_cast<size_t>(std::max(threads.count, 1)));
  if (most <= 1)
    job.work();
  else if (threads.team)
    threads.team([](void* it) { static_cast<mla_opt::Job*>(it)->work(); }, &job,
                 static_cast<unsigned>(threads.count), 0);
  else
    mla_opt::pool().run(job, most - 1);
  return nullptr;
}
