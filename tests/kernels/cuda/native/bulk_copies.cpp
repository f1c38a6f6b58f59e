#include "bulk_copies.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "emulator.h"

namespace mla_opt::emulator {
namespace {

constexpr uint32_t kChunk = 16, kSwizzledRow = 128, kBarrierBytes = 8;

int64_t landed_in_all = 0;

uint32_t bytes_of(const Tensor& tensor) {
  return static_cast<uint32_t>(2 * tensor.box_rows * tensor.box_columns);
}

}  // namespace

int64_t boxes_landed() { return landed_in_all; }

BulkCopies::BulkCopies(std::vector<char>& shared, std::vector<char>& async_view, int threads)
    : shared_(shared), async_view_(async_view), threads_(static_cast<size_t>(threads)) {}

BulkCopies::Barrier& BulkCopies::known(uint32_t barrier) {
  const auto found = barriers_.find(barrier);
  if (found == barriers_.end()) illegal("a barrier that nobody has made");
  return found->second;
}

void BulkCopies::make(uint32_t barrier, int arrivals, int thread) {
  if (barrier % kBarrierBytes || barrier + kBarrierBytes > shared_.size())
    illegal("a barrier at an address where none may be");
  if (covers(barrier, kBarrierBytes)) illegal("a barrier that is made twice");
  Barrier made;
  made.arrivals = made.missing = arrivals;
  made.maker = thread;
  made.seen.assign(threads_, 0);
  barriers_.emplace(barrier, made);
}

void BulkCopies::show(int thread) {
  for (auto& [address, barrier] : barriers_)
    if (barrier.maker == thread) barrier.shown = true;
}

bool BulkCopies::covers(uint32_t address, uint32_t bytes) const {
  return std::any_of(barriers_.begin(), barriers_.end(), [&](const auto& one) {
    return one.first < address + bytes && address < one.first + kBarrierBytes;
  });
}

void BulkCopies::end_phase_if_complete(Barrier& barrier) {
  if (barrier.missing > 0 || barrier.bytes > 0) return;
  ++barrier.phase;
  barrier.missing = barrier.arrivals;
}

void BulkCopies::arrive(uint32_t address, int64_t bytes) {
  Barrier& barrier = known(address);
  // Who did not wait for the phase before finds it here.
  while (sabotage() == Sabotage::kPhase && barrier.bytes > 0)
    land(static_cast<size_t>(
        std::find_if(boxes_.begin(), boxes_.end(),
                     [&](const Box& box) { return box.barrier == address; }) -
        boxes_.begin()));
  if (barrier.missing == 0) illegal("more arrivals at a barrier than its phase has");
  --barrier.missing;
  barrier.bytes += bytes;
  end_phase_if_complete(barrier);
}

bool BulkCopies::wait(uint32_t address, uint32_t parity, int thread) {
  const bool is_strict = sabotage() == Sabotage::kNothing;
  if (!is_strict && barriers_.find(address) == barriers_.end()) return true;
  Barrier& barrier = known(address);
  uint64_t& seen = barrier.seen[static_cast<size_t>(thread)];
  if (is_strict && parity != seen % 2) illegal("a wait for a phase that is not the next");
  if (is_strict && barrier.phase > seen + 1) illegal("a thread that has missed a phase");
  if (sabotage() == Sabotage::kPhase) return true;
  if (barrier.phase == seen) return false;
  ++seen;
  for (const auto& [start, bytes] : barrier.landed)
    std::memcpy(&shared_[start], &async_view_[start], bytes);
  barrier.landed.clear();
  return true;
}

void BulkCopies::start(uint32_t to, const Tensor& tensor, int column, int row, uint32_t barrier) {
  if (to % kSwizzledRow || 2 * tensor.box_columns != kSwizzledRow)
    illegal("a box that cannot be swizzled by 128 bytes");
  if (to < kSharedStart || to + uint64_t{bytes_of(tensor)} > async_view_.size())
    illegal("a box beyond the shared memory");
  if (!known(barrier).shown) illegal("a copy in bulk with a barrier that it cannot see");
  boxes_.push_back({to, tensor, column, row, barrier});
}

void BulkCopies::land(size_t which) {
  const Box box = boxes_[which];
  boxes_.erase(boxes_.begin() + static_cast<std::ptrdiff_t>(which));
  const Tensor& tensor = box.tensor;
  for (uint32_t at = 0; at < bytes_of(tensor); at += kChunk) {
    const int64_t row = box.row + at / kSwizzledRow, column = box.column + at % kSwizzledRow / 2;
    const bool is_inside = row >= 0 && row < tensor.rows && column >= 0 && column < tensor.columns;
    const uint32_t to = box.to + at, swizzled = to ^ (to / kSwizzledRow % 8 * kChunk);
    // What lies outside becomes zeros.
    if (is_inside)
      std::memcpy(&async_view_[swizzled], tensor.start + 2 * (row * tensor.columns + column),
                  kChunk);
    else
      std::memset(&async_view_[swizzled], 0, kChunk);
  }
  Barrier& barrier = known(box.barrier);
  barrier.landed.emplace_back(box.to, bytes_of(tensor));
  barrier.bytes -= bytes_of(tensor);
  if (barrier.bytes < 0) illegal("more bytes at a barrier than were expected");
  ++landed_in_all;
  end_phase_if_complete(barrier);
}

void BulkCopies::land_one(std::mt19937_64& random) { land(random() % boxes_.size()); }

void BulkCopies::check_quiet() {
  while (sabotage() == Sabotage::kPhase && under_way()) land(boxes_.size() - 1);
  if (under_way()) illegal("a block ends before its copies in bulk do");
  for (const auto& [address, barrier] : barriers_) {
    if (barrier.missing != barrier.arrivals || barrier.bytes > 0)
      illegal("a block ends within a phase of a barrier");
    if (!barrier.landed.empty() && sabotage() == Sabotage::kNothing)
      illegal("a block ends without a wait for what was copied in bulk");
  }
}

}  // namespace mla_opt::emulator
