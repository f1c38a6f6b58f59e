// Small integers as vectors of LANES integers, by AVX-512. Included before unpack.inl.

inline Integers widen_bytes(const uint8_t* from) {
  return reinterpret_cast<Integers>(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

inline Integers widen_signed_bytes(const uint8_t* from) {
  return reinterpret_cast<Integers>(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

inline Integers widen_shorts(const uint8_t* from) {
  return reinterpret_cast<Integers>(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}

inline Vector widen_halves(const uint8_t* from) {
  return reinterpret_cast<Vector>(
      _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
