// Codes of quantized rows as bfloat16 numbers by way of float16: 32 at a time from the first step on,
// where floats are 16. Included after vectors.inl by the tiers for bfloat16 rows.
//
//   word = code * mantissa of the scale, a float16; rounded to 8 bits, with the exponent of the scale
//
// Rounded twice, to 11 bits and to 8. A code of zero becomes a number 2^20 times smaller than the next.
#if !defined(MLA_OPT_HAS_FP16)
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define MLA_OPT_HAS_FP16 1
#else
#define MLA_OPT_HAS_FP16 0
#endif
#endif

#if MLA_OPT_HAS_FP16

#pragma GCC push_options
#pragma GCC target("avx512fp16")

// What words of a block of codes are made with, by its scale.
struct WordScale {
  uint16_t factor;    // a float16: the mantissa of the scale, so large that no product is subnormal
  uint16_t exponent;  // what is added to the exponents of the products, in the place of bfloat16's
};

struct Int8Words {
  static constexpr int kLift = 8, kExponent = 0;
  static inline __attribute__((always_inline)) __m512h numbers(__m512i codes) {
    return _mm512_cvtepi16_ph(codes);
  }
};

struct E4M3Words {
  // 4 bits of exponent and 3 of mantissa where those of a float16 end: 2^8 times too small.
  static constexpr int kLift = 13, kExponent = 8;
  static inline __attribute__((always_inline)) __m512h numbers(__m512i codes) {
    const __m512i bits = _mm512_slli_epi16(codes, 7);
    return _mm512_castsi512_ph(_mm512_and_si512(bits, _mm512_set1_epi16(static_cast<short>(0xbf80))));
  }
};

// False where exponents could leave those of bfloat16: scales of 0, and what is no number, among them.
template <class Words>
inline bool word_scale(BFloat16 scale, WordScale& to) {
  uint16_t bits;
  __builtin_memcpy(&bits, &scale, sizeof bits);
  const int exponent = bits >> 7;  // a sign makes it too large
  if (exponent < 40 || exponent > 220) return false;
  to.factor = static_cast<uint16_t>((15 + Words::kLift) << 10 | (bits & 0x7f) << 3);
  to.exponent = static_cast<uint16_t>((exponent - 15 - Words::kLift + Words::kExponent) << 7);
  return true;
}

template <class Words>
inline void store_words(const uint8_t* codes, WordScale scale, int64_t count, BFloat16* to) {
  const __m512h factor =
      _mm512_castsi512_ph(_mm512_set1_epi16(static_cast<short>(scale.factor)));
  const __m512i exponent = _mm512_set1_epi16(static_cast<short>(scale.exponent));
  const __m512i half = _mm512_set1_epi16(4);
  const __m512i kept = _mm512_set1_epi16(static_cast<short>(0x8fff));
#pragma GCC unroll 4
  for (int64_t c = 0; c < count; c += 2 * LANES) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + c));
    const __m512h product = _mm512_mul_ph(Words::numbers(_mm512_cvtepi8_epi16(bytes)), factor);
    const __m512i rounded = _mm512_add_epi16(_mm512_castph_si512(product), half);
    const __m512i moved = _mm512_and_si512(_mm512_srai_epi16(rounded, 3), kept);
    _mm512_storeu_si512(to + c, _mm512_add_epi16(moved, exponent));
  }
}

// A row of `rank` codes, a multiple of 32. False, and nothing is written, where its scales are unusual.
template <class Words>
bool dequantize_by_words(const uint8_t* codes, const BFloat16* scales, int64_t rank, BFloat16* to) {
  constexpr int64_t kMost = 16;
  WordScale of_blocks[kMost];
  const int64_t blocks = scales_of(rank);
  if (blocks > kMost) return false;
  for (int64_t b = 0; b < blocks; ++b)
    if (!word_scale<Words>(scales[b], of_blocks[b])) return false;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * kCodesPerScale;
    if (rank - first >= kCodesPerScale)
      store_words<Words>(codes + first, of_blocks[b], kCodesPerScale, to + first);
    else
      store_words<Words>(codes + first, of_blocks[b], rank - first, to + first);
  }
  return true;
}

#pragma GCC pop_options

inline bool has_float16_vectors() {
  static const bool has = __builtin_cpu_supports("avx512fp16");
  return has;
}

#else

struct Int8Words;
struct E4M3Words;

#endif
