#include "peak.h"

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "../../../mla_opt/kernels/cpu/element.h"
#include "../../../mla_opt/kernels/cpu/tier.h"

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

// Numbers of many different bits: with zeros a processor takes less power, and may run faster than it
// ever does at work.
struct Numbers {
  alignas(64) float values[2 * 16];

  Numbers() {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> any(-1.0f, 1.0f);
    for (float& value : values) value = any(random);
  }
};

#if MLA_OPT_HAS_AMX
// Two tiles of pairs of bfloat16, which overlap.
std::vector<uint16_t> tile_numbers() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> any(-1.0f, 1.0f);
  std::vector<uint16_t> tiles(16 * 32 + 1);
  for (uint16_t& number : tiles) number = mla_opt::converted<mla_opt::BFloat16>(any(random)).bits;
  return tiles;
}
#endif

const Numbers numbers;

#define MLA_OPT_REPEAT(Vector, operations, multiply)          \
  Vector sums[kSums] = {};                                    \
  Vector a, b;                                                \
  std::memcpy(&a, numbers.values, sizeof a);                  \
  std::memcpy(&b, numbers.values + 16, sizeof b);             \
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

#if MLA_OPT_HAS_AMX
// Four sums, as many as leave tiles for what is multiplied.
__attribute__((target("amx-tile,amx-bf16"))) double multiply_tiles(long repeats) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_in_row[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
  } tiles;
  asm volatile("" : : "r"(&tiles) : "memory");
  _tile_loadconfig(&tiles);
  static const std::vector<uint16_t> bits = tile_numbers();
  _tile_loadd(4, bits.data(), 64);
  _tile_loadd(5, bits.data() + 1, 64);
  const long each = repeats / 16;
  for (long i = 0; i < each; ++i) {
    _tile_dpbf16ps(0, 4, 5);
    _tile_dpbf16ps(1, 4, 5);
    _tile_dpbf16ps(2, 4, 5);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_release();
  return static_cast<double>(each) * 4 * 16 * 16 * 32 * 2;
}
#endif
#endif

}  // namespace

Multiply multiply_of(const std::string& tier, bool bfloat16) {
#if defined(__x86_64__)
#if MLA_OPT_HAS_AMX
  if (bfloat16 && tier == "amx") return multiply_tiles;
#endif
  if (bfloat16) return tier == "avx512bf16" ? multiply_pairs : nullptr;
  if (tier == "amx" || tier == "avx512bf16" || tier == "avx512") return multiply_avx512;
  if (tier == "avx2") return multiply_avx2;
#else
  if (bfloat16) return nullptr;
#endif
  return multiply_four;
}
