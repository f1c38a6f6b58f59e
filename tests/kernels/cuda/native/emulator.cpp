#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace mla_opt::emulator {
namespace {

constexpr int kLanes = 32;
constexpr int kBarriers = 16;
constexpr size_t kStack = 64 * 1024;
constexpr uint32_t kBoxBytes = 64 * 128;

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
  std::vector<std::pair<uint32_t, uint32_t>> unseen;  // written, not yet shown: start and bytes
};

// A warp's quarter of a product of its warpgroup.
struct Product {
  Request request;
  float* sums[kLanes];
};

struct Warp {
  Thread* lanes;
  int index = 0;
  bool waits = false;
  bool finished = false;
  bool may_multiply = false;
  std::vector<Product> open;
  std::deque<std::vector<Product>> products;  // groups, oldest first
};

struct Machine {
  Block block;
  const std::function<void()>* kernel;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<char> shared;
  std::vector<char> async_view;  // of shared, as products of warpgroups see it
  std::optional<BulkCopies> bulk;
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
  constexpr char zeros[16] = {};
  if (copy.to % 16) illegal("a copy to an address that is no multiple of 16");
  if (reinterpret_cast<uintptr_t>(copy.from) % 16) illegal("a copy from an unaligned address");
  write_shared(copy.to, copy.is_real ? copy.from : zeros, 16);
}

// ---- what a warp does together --------------------------------------------------------------------

void load_matrices(Warp& warp, bool transposed) {
  uint16_t matrix[4][8][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint32_t address = warp.lanes[lane].request.address;
    machine->current = &warp.lanes[lane];
    if (address % 16) illegal("a matrix row at an address that is no multiple of 16");
    std::memcpy(matrix[lane / 8][lane % 8], read_shared(address, 16), 16);
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

// ---- products of warpgroups: the PTX manual's matrices with a swizzle of 128 bytes -------------------

struct Descriptor {
  uint32_t address, leading, stride;
};

Descriptor decoded(uint64_t bits) {
  const auto field = [&](int from) { return static_cast<uint32_t>(bits >> from & 0x3fff) * 16; };
  if (bits >> 62 != 1 || (bits >> 49 & 7) != 0) illegal("a matrix that is not swizzled by 128 bytes");
  return {field(0), field(16), field(32)};
}

uint16_t swizzled(uint32_t address) {
  address ^= (address >> 7 & 7) << 4;
  if (address < kSharedStart || address + 2 > machine->async_view.size())
    illegal("a matrix beyond the shared memory");
  uint16_t bits;
  std::memcpy(&bits, &machine->async_view[address], 2);
  return bits;
}

// Element k of row m, where rows are what is not summed over, and k lies along them.
uint16_t along_rows(const Descriptor& d, int m, int k) {
  return swizzled(d.address + static_cast<uint32_t>(m / 8) * d.stride +
                  static_cast<uint32_t>(m % 8 * 128 + k * 2));
}

// Element k of column n, where n lies along the rows: blocks of 64 columns, rows in eights.
uint16_t across_rows(const Descriptor& d, int n, int k) {
  return swizzled(d.address + static_cast<uint32_t>(n / 64) * d.leading +
                  static_cast<uint32_t>(k / 8) * d.stride +
                  static_cast<uint32_t>(k % 8 * 128 + n % 64 * 2));
}

void make(const Warp& warp, const Product& product) {
  const Request& request = product.request;
  const Descriptor left = decoded(request.descriptors[0]), right = decoded(request.descriptors[1]);
  const bool across = request.columns == 256;
  std::vector<float> b(static_cast<size_t>(16 * request.columns));
  for (int n = 0; n < request.columns; ++n)
    for (int k = 0; k < 16; ++k)
      b[static_cast<size_t>(16 * n + k)] =
          request.number(across ? across_rows(right, n, k) : along_rows(right, n, k));
  for (int row = 0; row < 16; ++row) {
    float a[16];
    for (int k = 0; k < 16; ++k)
      a[k] = request.number(along_rows(left, 16 * (warp.index % 4) + row, k));
    for (int n = 0; n < request.columns; ++n) {
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += a[k] * b[static_cast<size_t>(16 * n + k)];
      product.sums[4 * (row % 8) + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2] += sum;
    }
  }
}

void start_product(Warp& warp) {
  if (!warp.may_multiply) illegal("a product of registers that were not fenced");
  Product product;
  product.request = warp.lanes[0].request;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& own = warp.lanes[lane].request;
    product.sums[lane] = own.sum;
    if (own.descriptors[0] != product.request.descriptors[0] ||
        own.descriptors[1] != product.request.descriptors[1])
      illegal("lanes of a warp with different matrices");
  }
  // In order: once one is late, so are those after it.
  const bool none_is_late = warp.open.empty() && warp.products.empty();
  if (none_is_late && machine->random() % 2)
    make(warp, product);
  else
    warp.open.push_back(product);
}

void wait_for_products(Warp& warp) {
  const auto newest = static_cast<size_t>(warp.lanes[0].request.newest);
  if (!warp.open.empty()) illegal("a wait for products in no group");
  for (; warp.products.size() > newest; warp.products.pop_front())
    for (const Product& product : warp.products.front()) make(warp, product);
  warp.may_multiply = false;
}

void exchange(Warp& warp) {
  float values[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) values[lane] = *warp.lanes[lane].request.value;
  for (int lane = 0; lane < kLanes; ++lane)
    *warp.lanes[lane].request.value = values[lane ^ warp.lanes[lane].request.distance];
}

bool waits_for_phase(const Warp& warp) {
  return warp.lanes[0].request.operation == Operation::kWaitForPhase;
}

// Lanes see the phase together, here as on a GPU when all of them ask.
void wait_for_phase(Warp& warp) {
  warp.waits = false;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Request& own = warp.lanes[lane].request;
    machine->current = &warp.lanes[lane];
    if (own.address != warp.lanes[0].request.address)
      illegal("lanes of a warp that wait at different barriers");
    if (!machine->bulk->wait(own.address, own.parity, warp.lanes[lane].index)) warp.waits = true;
  }
}

void land_one() {
  machine->current = nullptr;
  machine->bulk->land_one(machine->random);
  for (Warp& warp : machine->warps)
    if (warp.waits && waits_for_phase(warp)) wait_for_phase(warp);
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
    if (other.waits && !waits_for_phase(other) &&
        other.lanes[0].request.barrier == request.barrier)
      other.waits = false;
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
    case Operation::kBeginProducts:
      warp.may_multiply = true;
      return;
    case Operation::kProduct:
      return start_product(warp);
    case Operation::kCommitProducts:
      warp.products.push_back(std::move(warp.open));
      warp.open.clear();
      return;
    case Operation::kWaitForProducts:
      return wait_for_products(warp);
    case Operation::kWaitForPhase:
      return wait_for_phase(warp);
    case Operation::kFinished:
      if (!warp.open.empty() || !warp.products.empty()) illegal("a warp ends before its products do");
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
    if (all_finished) return machine->bulk->check_quiet();
    if (machine->bulk->under_way() && (ready.empty() || machine->random() % 4 == 0)) {
      land_one();
      continue;
    }
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
  own.shared.assign(kSharedStart + static_cast<size_t>(block.shared_bytes),
                    static_cast<char>(0xff));
  own.async_view = own.shared;
  own.bulk.emplace(own.shared, own.async_view, block.threads);
  own.random.seed(block.seed);
  machine = &own;
  for (int i = 0; i < block.threads; ++i) prepare(own.threads[static_cast<size_t>(i)], i);
  for (int i = 0; i < block.threads; i += kLanes) {
    Warp warp;
    warp.lanes = &own.threads[static_cast<size_t>(i)];
    warp.index = i / kLanes;
    own.warps.push_back(warp);
  }
  run_all();
  machine = nullptr;
}

int thread_index() { return machine->current->index; }

const Block& block() { return machine->block; }

void set_sabotage(Sabotage sabotage) { broken = sabotage; }

Sabotage sabotage() { return broken; }

void illegal(const std::string& what) {
  std::fprintf(stderr, "emulator: %s (block %d, thread %d)\n", what.c_str(), machine->block.index,
               machine->current ? machine->current->index : -1);
  std::abort();
}

void await(const Request& request) {
  if (is_broken(request)) return;
  Thread* self = machine->current;
  self->request = request;
  swapcontext(&self->context, &machine->scheduler);
}

namespace {

char* checked(uint32_t address, uint32_t bytes) {
  if (address < kSharedStart || address + uint64_t{bytes} > machine->shared.size())
    illegal("address " + std::to_string(address) + " is beyond the shared memory");
  return machine->shared.data() + address;
}

}  // namespace

const void* read_shared(uint32_t address, uint32_t bytes) { return checked(address, bytes); }

void write_shared(uint32_t address, const void* from, uint32_t bytes) {
  if (machine->bulk->covers(address, bytes)) illegal("something is written over a barrier");
  std::memcpy(checked(address, bytes), from, bytes);
  machine->current->unseen.emplace_back(address, bytes);
}

void show_to_async() {
  if (broken == Sabotage::kShow) return;
  for (const auto& [address, bytes] : machine->current->unseen)
    std::memcpy(&machine->async_view[address], &machine->shared[address], bytes);
  machine->current->unseen.clear();
}

void make_barrier(uint32_t barrier, int arrivals) {
  machine->bulk->make(barrier, arrivals, machine->current->index);
}

void show_barriers() {
  if (broken != Sabotage::kShowBarriers) machine->bulk->show(machine->current->index);
}

void expect_bytes(uint32_t barrier, int64_t bytes) {
  machine->bulk->arrive(barrier, broken == Sabotage::kExpect ? bytes - kBoxBytes : bytes);
}

void start_box(uint32_t to, const Tensor& tensor, int column, int row, uint32_t barrier) {
  // Without barriers some thread is always late.
  const bool is_strict = broken != Sabotage::kBlockBarrier;
  for (const Thread& thread : machine->threads)
    for (const auto& [start, bytes] : thread.unseen)
      if (is_strict && start < to + kBoxBytes && to < start + bytes)
        illegal("a copy in bulk that what was written before may overtake");
  machine->bulk->start(to, tensor, column, row, barrier);
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
