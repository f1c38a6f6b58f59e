#include "peak.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// Enough to hide the latency of two units, few enough for the registers.
constexpr int kSums = 12;

// Keeps a value in its register, and the compiler from knowing it.
#if defined(__x86_64__)
#define MLA_OPT_KEEP(value) asm volatile("" : "+v"(value))
#elif defined(__aarch64__)
#define MLA_OPT_KEEP(value) asm volatile("" : "+w"(value))
#else
#define MLA_OPT_KEEP(value) asm volatile("" : "+m"(value))
#endif

#define MLA_OPT_REPEAT(Vector, operations, multiply)          \
  Vector sums[kSums] = {};                                    \
  Vector a{}, b{};                                            \
  MLA_OPT_KEEP(a);                                            \
  MLA_OPT_KEEP(b);                                            \
  for (long i = 0; i < repeats; ++i) {                        \
    _Pragma("GCC unroll 12") for (int s = 0; s < kSums; ++s) { \
      multiply;                                               \
      MLA_OPT_KEEP(sums[s]);                                  \
    }                                                         \
  }                                                           \
  return static_cast<double>(repeats) * kSums * operations;

typedef float Four __attribute__((vector_size(16)));

double multiply_four(long repeats) { MLA_OPT_REPEAT(Four, 8, sums[s] += a * b) }

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) double multiply_avx2(long repeats) {
  MLA_OPT_REPEAT(__m256, 16, sums[s] = _mm256_fmadd_ps(a, b, sums[s]))
}

__attribute__((target("avx512f"))) double multiply_avx512(long repeats) {
  MLA_OPT_REPEAT(__m512, 32, sums[s] = _mm512_fmadd_ps(a, b, sums[s]))
}

__attribute__((target("avx512f,avx512bf16"))) double multiply_pairs(long repeats) {
  MLA_OPT_REPEAT(__m512, 64,
                 sums[s] = _mm512_dpbf16_ps(sums[s], reinterpret_cast<__m512bh>(a),
                                            reinterpret_cast<__m512bh>(b)))
}
#endif

}  // namespace

Multiply multiply_of(const std::string& tier, bool bfloat16) {
#if defined(__x86_64__)
  if (bfloat16) return tier == "avx512bf16" ? multiply_pairs : nullptr;
  if (tier == "avx512bf16" || tier == "avx512") return multiply_avx512;
  if (tier == "avx2") return multiply_avx2;
#else
  if (bfloat16) return nullptr;
#endif
  return multiply_four;
}
