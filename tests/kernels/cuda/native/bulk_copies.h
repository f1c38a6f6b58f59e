// Copies of boxes of a tensor into the shared memory of a block (TMA), and the barriers that count
// their bytes (mbarrier). Each box lands at a random time after its start, swizzled by 128 bytes: in
// what asynchronous units see, and in what threads see once they have waited for its phase.
#pragma once

#include <cstdint>
#include <map>
#include <random>
#include <vector>

namespace mla_opt::emulator {

// What a tensor map says: dense rows of 16-bit numbers, and the box that one copy takes.
struct Tensor {
  const char* start;
  int64_t rows;
  int64_t columns;
  int64_t box_rows;
  int64_t box_columns;
};

class BulkCopies {
 public:
  BulkCopies(std::vector<char>& shared, std::vector<char>& async_view, int threads);

  // ---- barriers, by their address

  void make(uint32_t barrier, int arrivals, int thread);
  // Those that a thread has made, to copies in bulk.
  void show(int thread);
  void arrive(uint32_t barrier, int64_t bytes);
  // Whether a thread that waits for the phase of this parity may go on; the phase is then seen.
  bool wait(uint32_t barrier, uint32_t parity, int thread);
  bool covers(uint32_t address, uint32_t bytes) const;

  // ---- copies

  void start(uint32_t to, const Tensor& tensor, int column, int row, uint32_t barrier);
  bool under_way() const { return !boxes_.empty(); }
  void land_one(std::mt19937_64& random);
  // At the end of the block: nothing may be under way, or waited for by nobody.
  void check_quiet();

 private:
  struct Box {
    uint32_t to;
    Tensor tensor;
    int64_t column, row;
    uint32_t barrier;
  };
  struct Barrier {
    int arrivals = 0;  // that a phase needs
    int missing = 0;   // of them
    int64_t bytes = 0;  // expected, not here yet
    uint64_t phase = 0;
    int maker = 0;
    bool shown = false;
    std::vector<std::pair<uint32_t, uint32_t>> landed;  // unseen: start and bytes
    std::vector<uint64_t> seen;                         // phases, by thread
  };

  Barrier& known(uint32_t barrier);
  void land(size_t which);
  void end_phase_if_complete(Barrier& barrier);

  std::vector<char>& shared_;
  std::vector<char>& async_view_;
  size_t threads_;
  std::map<uint32_t, Barrier> barriers_;
  std::vector<Box> boxes_;
};

// Boxes that have landed in all blocks so far.
int64_t boxes_landed();

}  // namespace mla_opt::emulator
