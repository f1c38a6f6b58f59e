#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace mla_opt::emulator {
namespace {

constexpr int kLanes = 32;
constexpr int kBarriers = 16;
constexpr size_t kStack = 64 * 1024;

struct Copy {
  uint32_t to;
  const void* from;
  bool is_real;
};

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  int index = 0;
  Request request;
  std::vector<Copy> open;                // started, in no group yet
  std::deque<std::vector<Copy>> groups;  // oldest first
};

struct Warp {
  Thread* lanes;
  bool waits = false;
  bool finished = false;
};

struct Machine {
  Block block;
  const std::function<void()>* kernel;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<char> shared;
  int arrived[kBarriers] = {};
  int expected[kBarriers] = {};
  std::mt19937_64 random;
  ucontext_t scheduler;
  Thread* current = nullptr;
};

thread_local Machine* machine = nullptr;
Sabotage broken = Sabotage::kNothing;

bool is_broken(const Request& request) {
  if (request.operation != Operation::kBarrier) return false;
  return broken == (request.barrier == 0 ? Sabotage::kBlockBarrier : Sabotage::kGroupBarrier);
}

[[noreturn]] void illegal(const std::string& what) {
  std::fprintf(stderr, "emulator: %s (block %d, thread %d)\n", what.c_str(), machine->block.index,
               machine->current ? machine->current->index : -1);
  std::abort();
}

void run_thread() {
  (*machine->kernel)();
  for (const auto& group : machine->current->groups)
    if (!group.empty()) illegal("a thread ends before its copies do");
  if (!machine->current->open.empty()) illegal("a thread ends with copies in no group");
  machine->current->request = {};
  machine->current->request.operation = Operation::kFinished;
  swapcontext(&machine->current->context, &machine->scheduler);
}

void prepare(Thread& thread, int index) {
  thread.index = index;
  thread.stack = std::make_unique<char[]>(kStack);
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = thread.stack.get();
  thread.context.uc_stack.ss_size = kStack;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, run_thread, 0);
}

void resume(Thread& thread) {
  machine->current = &thread;
  swapcontext(&machine->scheduler, &thread.context);
}

void land(const Copy& copy) {
  void* to = shared_memory(copy.to, 16);
  if (copy.to % 16) illegal("a copy to an address that is no multiple of 16");
  if (reinterpret_cast<uintptr_t>(copy.from) % 16) illegal("a copy from an unaligned address");
  if (copy.is_real)
    std::memcpy(to, copy.from, 16);
  else
    std::memset(to, 0, 16);
}

// ---- what a warp does together --------------------------------------------------------------------

void load_matrices(Warp& warp, bool transposed) {
  uint16_t matrix[4][8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t address = warp.lanes[lane].request.address;
    machine->current = &warp.lanes[lane];
    if (address % 16) illegal("a matrix row at an address that is no multiple of 16");
    std::memcpy(matrix[lane / 8][lane % 8], shared_memory(address, 16), 16);
  }
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const uint16_t low = transposed ? matrix[i][column][row] : matrix[i][row][column];
      const uint16_t high = transposed ? matrix[i][column + 1][row] : matrix[i][row][column + 1];
      warp.lanes[lane].request.matrix[i] = uint32_t{low} | uint32_t{high} << 16;
    }
}

// Fragments of mma.m16n8k16 as the PTX manual has them.
void multiply(Warp& warp) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& request = warp.lanes[lane].request;
    for (int half = 0; half < 2; ++half) {
      const int pair = 2 * (lane % 4) + half;
      const auto number = [&](uint32_t word) {
        return request.number(static_cast<uint16_t>(word >> 16 * half));
      };
      for (int i = 0; i < 4; ++i)
        a[lane / 4 + 8 * (i % 2)][pair + 8 * (i / 2)] = number(request.left[i]);
      for (int i = 0; i < 2; ++i) b[pair + 8 * i][lane / 4] = number(request.right[i]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      warp.lanes[lane].request.sum[i] += sum;
    }
}

void exchange(Warp& warp) {
  float values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) values[lane] = *warp.lanes[lane].request.value;
  for (int lane = 0; lane < kLanes; ++lane)
    *warp.lanes[lane].request.value = values[lane ^ warp.lanes[lane].request.distance];
}

void arrive(Warp& warp) {
  const Request& request = warp.lanes[0].request;
  int& arrived = machine->arrived[request.barrier];
  int& expected = machine->expected[request.barrier];
  if (arrived > 0 && expected != request.threads) illegal("a barrier of two sizes");
  expected = request.threads;
  arrived += kLanes;
  warp.waits = true;
  if (arrived < expected) return;
  if (arrived > expected) illegal("more threads at a barrier than it is for");
  arrived = 0;
  for (Warp& other : machine->warps)
    if (other.waits && other.lanes[0].request.barrier == request.barrier) other.waits = false;
}

void check_together(const Warp& warp) {
  const Request& first = warp.lanes[0].request;
  for (int lane = 1; lane < kLanes; ++lane) {
    const Request& other = warp.lanes[lane].request;
    machine->current = &warp.lanes[lane];
    if (other.operation != first.operation || other.barrier != first.barrier ||
        other.threads != first.threads || other.distance != first.distance)
      illegal("lanes of a warp have parted");
  }
}

void complete(Warp& warp) {
  check_together(warp);
  switch (warp.lanes[0].request.operation) {
    case Operation::kLoad:
    case Operation::kLoadTransposed:
      return load_matrices(warp, warp.lanes[0].request.operation == Operation::kLoadTransposed);
    case Operation::kMultiply:
      return multiply(warp);
    case Operation::kExchange:
      return exchange(warp);
    case Operation::kBarrier:
      return arrive(warp);
    case Operation::kFinished:
      warp.finished = true;
      return;
    case Operation::kNone:
      illegal("a thread stopped for nothing");
  }
}

// To the next barrier, or to the end.
void run_warp(Warp& warp) {
  while (!warp.waits && !warp.finished) {
    for (int lane = 0; lane < kLanes; ++lane) resume(warp.lanes[lane]);
    complete(warp);
  }
}

void run_all() {
  for (;;) {
    std::vector<Warp*> ready;
    bool all_finished = true;
    for (Warp& warp : machine->warps) {
      all_finished = all_finished && warp.finished;
      if (!warp.finished && !warp.waits) ready.push_back(&warp);
    }
    if (all_finished) return;
    if (ready.empty()) illegal("all warps wait");
    run_warp(*ready[machine->random() % ready.size()]);
  }
}

}  // namespace

void run(const Block& block, const std::function<void()>& kernel) {
  Machine own;
  own.block = block;
  own.kernel = &kernel;
  own.threads = std::vector<Thread>(static_cast<size_t>(block.threads));
  // What nobody has written is not a number in either type.
  own.shared.assign(static_cast<size_t>(block.shared_bytes), static_cast<char>(0xff));
  own.random.seed(block.seed);
  machine = &own;
  for (int i = 0; i < block.threads; ++i) prepare(own.threads[static_cast<size_t>(i)], i);
  for (int i = 0; i < block.threads; i += kLanes) {
    Warp warp;
    warp.lanes = &own.threads[static_cast<size_t>(i)];
    own.warps.push_back(warp);
  }
  run_all();
  machine = nullptr;
}

int thread_index() { return machine->current->index; }

const Block& block() { return machine->block; }

void set_sabotage(Sabotage sabotage) { broken = sabotage; }

void await(const Request& request) {
  if (is_broken(request)) return;
  Thread* self = machine->current;
  self->request = request;
  swapcontext(&self->context, &machine->scheduler);
}

void* shared_memory(uint32_t address, uint32_t bytes) {
  if (address + uint64_t{bytes} > machine->shared.size())
    illegal("address " + std::to_string(address) + " is beyond the shared memory");
  return machine->shared.data() + address;
}

void start_copy(uint32_t to, const void* from, bool is_real) {
  const Copy copy{to, from, is_real};
  if (machine->random() % 2)
    land(copy);
  else
    machine->current->open.push_back(copy);
}

void commit_copies() {
  Thread& self = *machine->current;
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

void wait_for_copies(int newest) {
  Thread& self = *machine->current;
  // One group less than asked for; what waits for all, at the end, still does.
  if (broken == Sabotage::kWait && newest > 0) ++newest;
  while (self.groups.size() > static_cast<size_t>(newest)) {
    for (const Copy& copy : self.groups.front()) land(copy);
    self.groups.pop_front();
  }
}

}  // namespace mla_opt::emulator
