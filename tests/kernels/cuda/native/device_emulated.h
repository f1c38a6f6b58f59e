// What the kernels ask of a machine (mla_opt/kernels/cuda/device.h), on a CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../../../../mla_opt/kernels/cpu/element.h"
#include "emulator.h"

#define MLA_OPT_DEVICE inline
#define MLA_OPT_UNROLL
#define MLA_OPT_UNROLL_4

namespace mla_opt::cuda {

using mla_opt::BFloat16;
using mla_opt::Half;
using mla_opt::to_float;

inline int block_index() { return emulator::block().index; }
inline int block_count() { return emulator::block().count; }
inline int thread_index() { return emulator::thread_index(); }
inline int thread_count() { return emulator::block().threads; }

inline uint32_t shared_start() { return emulator::kSharedStart; }

inline float load_shared(uint32_t address) {
  float value;
  std::memcpy(&value, emulator::read_shared(address, 4), 4);
  return value;
}

inline void store_shared(uint32_t address, float value) {
  emulator::write_shared(address, &value, 4);
}

inline void store_shared(uint32_t address, uint32_t value) {
  emulator::write_shared(address, &value, 4);
}

inline void copy_async(uint32_t to, const void* from, bool is_real) {
  emulator::start_copy(to, from, is_real);
}

inline void commit_copies() { emulator::commit_copies(); }

template <int kNewest>
inline void wait_for_copies() {
  emulator::wait_for_copies(kNewest);
}

inline bool elected() { return thread_index() % 32 == 0; }

inline void make_barrier(uint32_t barrier, int arrivals) {
  emulator::make_barrier(barrier, arrivals);
}

inline void show_barriers() { emulator::show_barriers(); }

inline void expect_bytes(uint32_t barrier, int bytes) { emulator::expect_bytes(barrier, bytes); }

inline void wait_for_phase(uint32_t barrier, uint32_t parity) {
  emulator::Request request;
  request.operation = emulator::Operation::kWaitForPhase;
  request.address = barrier;
  request.parity = parity;
  emulator::await(request);
}

inline void prefetch_map(const void*) {}

// A map is a Tensor here.
inline void copy_box(uint32_t to, const void* map, int column, int row, uint32_t barrier) {
  emulator::Tensor tensor;
  std::memcpy(&tensor, map, sizeof tensor);
  emulator::start_box(to, tensor, column, row, barrier);
}

inline void group_barrier(int index, int threads) {
  emulator::Request request;
  request.operation = emulator::Operation::kBarrier;
  request.barrier = index;
  request.threads = threads;
  emulator::await(request);
}

inline void block_barrier() { group_barrier(0, thread_count()); }

inline float exchange_xor(float value, int lanes) {
  emulator::Request request;
  request.operation = emulator::Operation::kExchange;
  request.value = &value;
  request.distance = lanes;
  emulator::await(request);
  return value;
}

inline bool any_of_warp(bool value) {
  float found = value ? 1.0f : 0.0f;
  for (int lanes = 1; lanes < 32; lanes *= 2) found = std::fmax(found, exchange_xor(found, lanes));
  return found != 0.0f;
}

inline void load_matrices(uint32_t address, uint32_t (&matrix)[4]) {
  emulator::Request request;
  request.operation = emulator::Operation::kLoad;
  request.address = address;
  request.matrix = matrix;
  emulator::await(request);
}

inline void load_matrices_transposed(uint32_t address, uint32_t (&matrix)[4]) {
  emulator::Request request;
  request.operation = emulator::Operation::kLoadTransposed;
  request.address = address;
  request.matrix = matrix;
  emulator::await(request);
}

template <class Element>
inline float number_of(uint16_t bits) {
  return to_float(Element{bits});
}

template <class Element>
inline void multiply(Element, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::Request request;
  request.operation = emulator::Operation::kMultiply;
  request.sum = sum;
  request.left = a;
  request.right[0] = b0;
  request.right[1] = b1;
  request.number = number_of<Element>;
  emulator::await(request);
}

inline void show_to_async() { emulator::show_to_async(); }

inline void await_operation(emulator::Operation operation, int newest = 0) {
  emulator::Request request;
  request.operation = operation;
  request.newest = newest;
  emulator::await(request);
}

inline void begin_products() { await_operation(emulator::Operation::kBeginProducts); }
inline void commit_products() { await_operation(emulator::Operation::kCommitProducts); }

template <int kNewest>
inline void wait_for_products() {
  await_operation(emulator::Operation::kWaitForProducts, kNewest);
}

template <class Element, int kTiles>
inline void multiply_async(float (&sum)[kTiles][4], uint64_t a, uint64_t b) {
  emulator::Request request;
  request.operation = emulator::Operation::kProduct;
  request.sum = &sum[0][0];
  request.descriptors[0] = a;
  request.descriptors[1] = b;
  request.columns = 8 * kTiles;
  request.number = number_of<Element>;
  emulator::await(request);
}

template <class Element>
inline void multiply_keys_async(Element, float (&sum)[4][4], uint64_t a, uint64_t b) {
  multiply_async<Element>(sum, a, b);
}

template <class Element>
inline void multiply_values_async(Element, float (&sum)[32][4], uint64_t a, uint64_t b) {
  multiply_async<Element>(sum, a, b);
}

inline float minus_infinity() { return -std::numeric_limits<float>::infinity(); }
inline float float_of(uint32_t bits) { return float_of_bits(bits); }

// One that is not a number gives way, as on a GPU.
inline float greater(float left, float right) { return std::fmax(left, right); }

inline float exponential_of_2(float value) {
  const float result = std::exp2(value);
  return result < std::numeric_limits<float>::min() ? 0.0f : result;
}

template <class Element>
inline uint32_t pack(Element, float low, float high) {
  return uint32_t{converted<Element>(low).bits} | uint32_t{converted<Element>(high).bits} << 16;
}

struct alignas(16) Chunk {
  uint32_t words[4];
};
struct alignas(8) Pair {
  float low;
  float high;
};
struct alignas(8) Words {
  uint32_t low;
  uint32_t high;
};

}  // namespace mla_opt::cuda
