// The instructions of a GPU that the kernels use.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>

#define MLA_OPT_DEVICE __device__ __forceinline__
#define MLA_OPT_UNROLL _Pragma("unroll")

namespace mla_opt::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

MLA_OPT_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
MLA_OPT_DEVICE int block_count() { return static_cast<int>(gridDim.x); }
MLA_OPT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
MLA_OPT_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }

// ---- shared memory --------------------------------------------------------------------------------

MLA_OPT_DEVICE uint32_t shared_start() {
  extern __shared__ __align__(128) unsigned char mla_opt_shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(mla_opt_shared));
}

MLA_OPT_DEVICE float load_shared(uint32_t address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}

MLA_OPT_DEVICE void store_shared(uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

MLA_OPT_DEVICE void store_shared(uint32_t address, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// Starts the copy of 16 bytes; where not is_real, of zeros: then nothing is read.
MLA_OPT_DEVICE void copy_async(uint32_t to, const void* from, bool is_real) {
  const int bytes = is_real ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(bytes)
               : "memory");
}

// Makes one group of the copies that this thread has started since the last call.
MLA_OPT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits for all but the newest groups of this thread.
template <int kNewest>
MLA_OPT_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// ---- barriers and exchange ------------------------------------------------------------------------

MLA_OPT_DEVICE void block_barrier() { __syncthreads(); }

// A barrier of some warps of a block: index 1 to 15, threads a multiple of 32.
MLA_OPT_DEVICE void group_barrier(int index, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(index), "r"(threads) : "memory");
}

MLA_OPT_DEVICE float exchange_xor(float value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}

// ---- matrices -------------------------------------------------------------------------------------

// Four 8 x 8 matrices of 16-bit numbers; lanes 8 i to 8 i + 7 give the addresses of matrix i's rows.
MLA_OPT_DEVICE void load_matrices(uint32_t address, uint32_t (&matrix)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(address)
               : "memory");
}

// Likewise, each transposed.
MLA_OPT_DEVICE void load_matrices_transposed(uint32_t address, uint32_t (&matrix)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrix[0]), "=r"(matrix[1]), "=r"(matrix[2]), "=r"(matrix[3])
               : "r"(address)
               : "memory");
}

// sum [16, 8] += a [16, 16] @ b [16, 8].
MLA_OPT_DEVICE void multiply(Half, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

MLA_OPT_DEVICE void multiply(BFloat16, float (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                             uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7},"
      " {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- numbers --------------------------------------------------------------------------------------

MLA_OPT_DEVICE float minus_infinity() { return __int_as_float(static_cast<int>(0xff800000u)); }

MLA_OPT_DEVICE float float_of(uint32_t bits) { return __int_as_float(static_cast<int>(bits)); }

MLA_OPT_DEVICE float greater(float left, float right) { return fmaxf(left, right); }

MLA_OPT_DEVICE float exponential_of_2(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

MLA_OPT_DEVICE float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

MLA_OPT_DEVICE float to_float(BFloat16 value) {
  return __int_as_float(static_cast<int>(uint32_t{value.bits} << 16));
}

// Two numbers, rounded to nearest; low in the lower half.
MLA_OPT_DEVICE uint32_t pack(Half, float low, float high) {
  uint32_t result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

MLA_OPT_DEVICE uint32_t pack(BFloat16, float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// What is read from and written to global memory at once.
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
