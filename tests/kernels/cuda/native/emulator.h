// A block of threads of a GPU on one thread of a CPU: lanes are fibers, a warp is 32 of them.
//
// What all lanes of a warp do together (matrix loads and products, exchanges) happens when all have
// come to it; a warp that comes to a barrier waits, and any other may go on. Warps run in random
// order, asynchronous copies land at a random time between their start and what waits for them:
// a barrier or a wait that is missing gives wrong numbers under some seed. What is illegal on a GPU
// (lanes of a warp that part, misaligned addresses, addresses beyond the shared memory, copies
// that nobody waits for) ends the program with a message.
//
// Products of warpgroups are made at a random time between their start and what waits for them, and
// see shared memory as their unit does: what a thread has stored, once it has said so. Copies in bulk
// are of that unit too (bulk_copies.h).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "bulk_copies.h"

namespace mla_opt::emulator {

enum class Operation {
  kNone,
  kLoad,
  kLoadTransposed,
  kMultiply,
  kExchange,
  kBarrier,
  kBeginProducts,
  kProduct,
  kCommitProducts,
  kWaitForProducts,
  kWaitForPhase,
  kFinished
};

// What a lane has come to, with its operands.
struct Request {
  Operation operation = Operation::kNone;
  uint32_t address = 0;                          // of a row of a matrix, or of a barrier in memory
  uint32_t* matrix = nullptr;                    // what is loaded
  float* sum = nullptr;                          // of a product
  const uint32_t* left = nullptr;
  uint32_t right[2] = {};
  float (*number)(uint16_t bits) = nullptr;      // of the product's 16-bit type
  float* value = nullptr;                        // what is exchanged
  int distance = 0;
  int barrier = 0;
  int threads = 0;
  uint64_t descriptors[2] = {};                  // of a warpgroup's product
  int columns = 0;
  int newest = 0;                                // groups that are not waited for
  uint32_t parity = 0;                           // of the phase that is
};

// Where the shared memory of a block starts: not where any kernel would like it to.
constexpr uint32_t kSharedStart = 128;

// What is broken on purpose, to see that it is noticed.
enum class Sabotage : int {
  kNothing,
  kBlockBarrier,
  kGroupBarrier,
  kWait,
  kShow,
  kPhase,   // waits for copies in bulk return at once
  kExpect,  // a box less than there are
  kShowBarriers
};
void set_sabotage(Sabotage sabotage);
Sabotage sabotage();

// Ends the program: what was done, no GPU does, or does in ways that nobody can rely on.
[[noreturn]] void illegal(const std::string& what);

struct Block {
  int index;
  int count;
  int threads;
  int shared_bytes;
  uint64_t seed;
};

// Runs the threads of a block; thread_index() tells them apart.
void run(const Block& block, const std::function<void()>& kernel);

// ---- for the thread that runs ---------------------------------------------------------------------

int thread_index();
const Block& block();

// Waits until all who take part have come.
void await(const Request& request);

const void* read_shared(uint32_t address, uint32_t bytes);
void write_shared(uint32_t address, const void* from, uint32_t bytes);

// Makes what this thread has written visible to the products of warpgroups, and orders it before
// copies in bulk.
void show_to_async();

void make_barrier(uint32_t barrier, int arrivals);
void show_barriers();
void expect_bytes(uint32_t barrier, int64_t bytes);
void start_box(uint32_t to, const Tensor& tensor, int column, int row, uint32_t barrier);

void start_copy(uint32_t to, const void* from, bool is_real);
void commit_copies();
void wait_for_copies(int newest);

}  // namespace mla_opt::emulator
