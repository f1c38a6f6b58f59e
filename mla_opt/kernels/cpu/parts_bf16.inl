// Floats as sums of bfloat16 numbers: 8 bits of the significand each, cut off and not rounded, so that
// three of them are the float itself and two a half-precision number. Products of parts whose places
// add up to more than the last place are below the rounding of a float, and left out:
//
//   a * b  =  a0 b0 + (a0 b1 + a1 b0) + (a0 b2 + a1 b1 + a2 b0)
//
// Henry, Tang and Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations", 2019. Numbers below 2^-110 lose their last parts: tiles know no
// subnormal ones.

constexpr int kParts = 3;
constexpr int kProducts = 6;  // of parts, for one of floats

// Parts of what a row is made of.
template <class T>
constexpr int kRowParts = kParts;
template <>
constexpr int kRowParts<Half> = 2;

inline __m512 load_floats(const float* from) { return _mm512_loadu_ps(from); }
inline __m512 load_floats(const Half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

inline __m512i upper_halves() { return _mm512_set1_epi32(static_cast<int>(0xffff0000u)); }

// Without its first part.
inline __m512 rest_of(__m512 value) {
  const __m512i first = _mm512_and_si512(_mm512_castps_si512(value), upper_halves());
  return _mm512_sub_ps(value, _mm512_castsi512_ps(first));
}

// The first parts of 16 numbers, each paired with that of another one; the first in the lower half.
inline __m512i first_parts_paired(__m512 first, __m512 second) {
  constexpr int kSecondWhereMasked = 0xca;  // mask ? second : first
  return _mm512_ternarylogic_epi32(upper_halves(), _mm512_castps_si512(second),
                                   _mm512_srli_epi32(_mm512_castps_si512(first), 16),
                                   kSecondWhereMasked);
}

// Calls use(part, pairs) for each part of 16 numbers paired with 16 others.
template <int PARTS, class Use>
inline __attribute__((always_inline)) void split(__m512 first, __m512 second, Use use) {
#pragma GCC unroll 3
  for (int part = 0; part < PARTS; ++part) {
    use(part, first_parts_paired(first, second));
    first = rest_of(first);
    second = rest_of(second);
  }
}
