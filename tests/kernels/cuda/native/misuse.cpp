// For tests: small kernels of two warps that use copies in bulk as no kernel may.
#include <vector>

#include "device_emulated.h"

using namespace mla_opt;

namespace {

enum class Misuse : int {
  kNone,
  kNobodyWaits,
  kLandsLate,
  kWrongPhase,
  kMissedPhase,
  kTwoArrivals,
  kUnaligned,
  kBeyondMemory,
  kOverBarrier,
  kNoBarrier
};

constexpr uint32_t kBarrier = emulator::kSharedStart, kBox = 1024, kBoxBytes = 64 * 128;

void kernel(Misuse misuse, const emulator::Tensor& tensor) {
  const bool is_first = cuda::thread_index() == 0;
  const auto copy = [&](uint32_t to) {
    if (!is_first) return;
    cuda::expect_bytes(kBarrier, kBoxBytes);
    cuda::copy_box(to, &tensor, 0, 0, kBarrier);
  };
  if (is_first && misuse != Misuse::kNoBarrier) cuda::make_barrier(kBarrier, 1);
  cuda::show_barriers();
  cuda::block_barrier();
  if (misuse == Misuse::kOverBarrier) cuda::store_shared(kBarrier + 4, 1.0f);
  if (misuse == Misuse::kTwoArrivals && is_first) cuda::expect_bytes(kBarrier, kBoxBytes);
  copy(misuse == Misuse::kUnaligned      ? kBox + 64
       : misuse == Misuse::kBeyondMemory ? 2 * kBox
                                         : kBox);
  if (misuse == Misuse::kLandsLate) return;
  if (misuse == Misuse::kNobodyWaits) {
    // Warps that wait for each other leave the copy time to land.
    for (int turn = 0; turn < 1000; ++turn) cuda::block_barrier();
    return;
  }
  cuda::wait_for_phase(kBarrier, misuse == Misuse::kWrongPhase ? 1 : 0);
  if (misuse != Misuse::kMissedPhase) return;
  for (int turn = 0; turn < 2; ++turn) {
    copy(kBox);
    for (int i = 0; i < 1000; ++i) cuda::block_barrier();
  }
  cuda::wait_for_phase(kBarrier, 1);
}

}  // namespace

extern "C" MLA_OPT_PUBLIC void mla_opt_misuse(int what) {
  static const std::vector<uint16_t> rows(64 * 64);
  const emulator::Tensor tensor{reinterpret_cast<const char*>(rows.data()), 64, 64, 64, 64};
  const auto misuse = static_cast<Misuse>(what);
  emulator::run({0, 1, 64, kBox + kBoxBytes - emulator::kSharedStart, 0},
                [&] { kernel(misuse, tensor); });
}
