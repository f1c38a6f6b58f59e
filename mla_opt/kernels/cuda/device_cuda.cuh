// The instructions of a GPU that the kernels use.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>

#define MLA_OPT_DEVICE __device__ __forceinline__
#define MLA_OPT_UNROLL _Pragma("unroll")
#define MLA_OPT_UNROLL_4 _Pragma("unroll 4")

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

// Whether it holds for any lane.
MLA_OPT_DEVICE bool any_of_warp(bool value) { return __any_sync(0xffffffffu, value) != 0; }

// ---- copies in bulk, and the barriers that count their bytes (from 9.0 on) ------------------------

// Holds for one lane of a whole warp: always the same.
MLA_OPT_DEVICE bool elected() {
  uint32_t holds;
  asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(holds));
  return holds != 0;
}

// A phase of the barrier ends when so many threads have arrived and all bytes that were expected have
// come; then the next begins.
MLA_OPT_DEVICE void make_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// The barriers that this thread has made become visible to copies in bulk; to other threads, once a
// block barrier is passed.
MLA_OPT_DEVICE void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Arrives, and has the phase wait for these bytes too.
MLA_OPT_DEVICE void expect_bytes(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Whether the phase of this parity is over; may wait a while for it.
MLA_OPT_DEVICE bool is_phase_over(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over != 0;
}

// Then what was copied in bulk in that phase can be read.
MLA_OPT_DEVICE void wait_for_phase(uint32_t barrier, uint32_t parity) {
  while (!is_phase_over(barrier, parity)) {
  }
}

// A tensor map in the kernel's parameters is fetched before it is needed.
MLA_OPT_DEVICE void prefetch_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Starts the copy of the map's box at this column and row; its bytes count at the barrier.
MLA_OPT_DEVICE void copy_box(uint32_t to, const void* map, int column, int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
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

// ---- products of warpgroups -----------------------------------------------------------------------

// What this thread has stored in shared memory becomes visible to wgmma, and is overtaken by no copy
// in bulk, once a barrier is passed.
MLA_OPT_DEVICE void show_to_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Before products whose sums, or other registers of theirs, have been written since the last wait.
MLA_OPT_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Makes one group of the products started since the last call.
MLA_OPT_DEVICE void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits for all but the newest groups.
template <int kNewest>
MLA_OPT_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kNewest) : "memory");
}

#define MLA_OPT_TILE(sum, i) "+f"(sum[i][0]), "+f"(sum[i][1]), "+f"(sum[i][2]), "+f"(sum[i][3])
#define MLA_OPT_TILES_4(sum, i) \
  MLA_OPT_TILE(sum, i), MLA_OPT_TILE(sum, i + 1), MLA_OPT_TILE(sum, i + 2), MLA_OPT_TILE(sum, i + 3)

// sum [64, 32] += a [64, 16] @ b [32, 16]^T, started only. A warp has 16 rows of the sum, in the
// fragments of `multiply`.
MLA_OPT_DEVICE void multiply_keys_async(Half, float (&sum)[4][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0; "
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "%16, %17, p, 1, 1, 0, 0;}"
      : MLA_OPT_TILES_4(sum, 0)
      : "l"(a), "l"(b));
}

MLA_OPT_DEVICE void multiply_keys_async(BFloat16, float (&sum)[4][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0; "
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
      "%16, %17, p, 1, 1, 0, 0;}"
      : MLA_OPT_TILES_4(sum, 0)
      : "l"(a), "l"(b));
}

// sum [64, 256] += a [64, 16] @ b [16, 256], started only.
MLA_OPT_DEVICE void multiply_values_async(Half, float (&sum)[32][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0; "
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
      "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "
      "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "
      "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "
      "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, "
      "%119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, 0, 1;}"
      : MLA_OPT_TILES_4(sum, 0),
        MLA_OPT_TILES_4(sum, 4),
        MLA_OPT_TILES_4(sum, 8),
        MLA_OPT_TILES_4(sum, 12),
        MLA_OPT_TILES_4(sum, 16),
        MLA_OPT_TILES_4(sum, 20),
        MLA_OPT_TILES_4(sum, 24),
        MLA_OPT_TILES_4(sum, 28)
      : "l"(a), "l"(b));
}

MLA_OPT_DEVICE void multiply_values_async(BFloat16, float (&sum)[32][4], uint64_t a, uint64_t b) {
  asm volatile(
      "{.reg .pred p; setp.eq.u32 p, 0, 0; "
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "
      "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, "
      "%47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
      "%62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "
      "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "
      "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, "
      "%106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, "
      "%119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, p, 1, 1, 0, 1;}"
      : MLA_OPT_TILES_4(sum, 0),
        MLA_OPT_TILES_4(sum, 4),
        MLA_OPT_TILES_4(sum, 8),
        MLA_OPT_TILES_4(sum, 12),
        MLA_OPT_TILES_4(sum, 16),
        MLA_OPT_TILES_4(sum, 20),
        MLA_OPT_TILES_4(sum, 24),
        MLA_OPT_TILES_4(sum, 28)
      : "l"(a), "l"(b));
}

#undef MLA_OPT_TILES_4
#undef MLA_OPT_TILE

#else

// There are none: kernels that use them are not compiled.
MLA_OPT_DEVICE void begin_products() {}
MLA_OPT_DEVICE void commit_products() {}
template <int kNewest>
MLA_OPT_DEVICE void wait_for_products() {}
template <class Element, int kTiles>
MLA_OPT_DEVICE void multiply_keys_async(Element, float (&)[kTiles][4], uint64_t, uint64_t) {}
template <class Element, int kTiles>
MLA_OPT_DEVICE void multiply_values_async(Element, float (&)[kTiles][4], uint64_t, uint64_t) {}

#endif

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
