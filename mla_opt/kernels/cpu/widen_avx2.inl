// Small integers as vectors of LANES integers, by AVX2. Included before unpack.inl.

inline Integers widen_bytes(const uint8_t* from) {
  return reinterpret_cast<Integers>(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

inline Integers widen_signed_bytes(const uint8_t* from) {
  return reinterpret_cast<Integers>(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}

inline Integers widen_shorts(const uint8_t* from) {
  return reinterpret_cast<Integers>(
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

inline Vector widen_halves(const uint8_t* from) {
  return small_floats<0x7c00, 15, 13>(widen_shorts(from), 0x1p112f);
}
