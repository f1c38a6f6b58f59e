// Codes of quantized rows (quantized_rows.h) as vectors of floats, exactly. Included by a tier after
// vectors.inl and one of the widen_*.inl.

struct Int8Codes {
  static inline __attribute__((always_inline)) Vector numbers(const uint8_t* from) {
    return __builtin_convertvector(widen_signed_bytes(from), Vector);
  }
};

struct E4M3Codes {
  // The sign, which widening repeats, and 7 bits where those of a float's exponent end. The exponent is
  // 120 too small; a multiplication mends it, and normalises subnormal numbers. No row has the code of
  // what is no number.
  static inline __attribute__((always_inline)) Vector numbers(const uint8_t* from) {
    constexpr int kSignAndMagnitude = static_cast<int>(0x87f00000u);
    return as_floats(widen_signed_bytes(from) << 20 & kSignAndMagnitude) * 0x1p120f;
  }
};

struct StoreFloats {
  float* to;
  inline __attribute__((always_inline)) void operator()(int64_t column, Vector numbers) const {
    store(to + column, numbers);
  }
};

// Calls put(column, numbers) for each vector of a row. What the last one has behind the row is nothing
// to go by.
template <class Codes, class Put>
inline __attribute__((always_inline)) void dequantize(const uint8_t* codes, const BFloat16* scales,
                                                      int64_t rank, Put put) {
  for (int64_t first = 0; first < rank; first += kCodesPerScale) {
    const int64_t end = least(first + kCodesPerScale, rank);
    const Vector scale = broadcast(to_float(*scales++));
    int64_t c = first;
    for (; c + LANES <= end; c += LANES) put(c, Codes::numbers(codes + c) * scale);
    if (c == end) continue;
    uint8_t rest[LANES] = {};
    for (int64_t i = c; i < end; ++i) rest[i - c] = codes[i];
    put(c, Codes::numbers(rest) * scale);
  }
}
