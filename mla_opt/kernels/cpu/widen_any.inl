// Small integers as vectors of LANES integers, by the compiler's own conversions: from one width to the
// next, which it has instructions for. Included before unpack.inl.

typedef uint8_t ByteVector __attribute__((vector_size(LANES)));
typedef int8_t SignedByteVector __attribute__((vector_size(LANES)));
typedef uint16_t ShortVector __attribute__((vector_size(LANES * 2)));
typedef int16_t SignedShortVector __attribute__((vector_size(LANES * 2)));

inline Integers widen_bytes(const uint8_t* from) {
  ByteVector bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, ShortVector), Integers);
}

inline Integers widen_signed_bytes(const uint8_t* from) {
  SignedByteVector bytes;
  __builtin_memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(__builtin_convertvector(bytes, SignedShortVector), Integers);
}

inline Integers widen_shorts(const uint8_t* from) {
  ShortVector shorts;
  __builtin_memcpy(&shorts, from, sizeof shorts);
  return __builtin_convertvector(shorts, Integers);
}

inline Vector widen_halves(const uint8_t* from) {
  return small_floats<0x7c00, 15, 13>(widen_shorts(from), 0x1p112f);
}
