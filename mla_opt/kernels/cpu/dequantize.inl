// Codes of quantized rows (quantized_rows.h) as vectors of floats, exactly. Included by a tier after
// vectors.inl and one of the widen_*.inl.

struct Int8Codes {
  static constexpr float kFactor = 1.0f;
  static inline __attribute__((always_inline)) Vector numbers(const uint8_t* from) {
    return __builtin_convertvector(widen_signed_bytes(from), Vector);
  }
};

struct E4M3Codes {
  // The sign, which widening repeats, and 7 bits where those of a float's exponent end. The exponent is
  // 120 too small; a multiplication by the factor mends it, and normalises subnormal numbers. No row has
  // the code of what is no number.
  static constexpr float kFactor = 0x1p120f;
  static inline __attribute__((always_inline)) Vector numbers(const uint8_t* from) {
    constexpr int kSignAndMagnitude = static_cast<int>(0x87f00000u);
    return as_floats(widen_signed_bytes(from) << 20 & kSignAndMagnitude);
  }
};

struct StoreFloats {
  float* to;
  inline __attribute__((always_inline)) void operator()(int64_t column, Vector numbers) const {
    store(to + column, numbers);
  }
  inline __attribute__((always_inline)) void operator()(int64_t column, Vector a, Vector b) const {
    store(to + column, a);
    store(to + column + LANES, b);
  }
};

// Calls put(column, numbers, numbers) for two neighbouring vectors of a block at a time, and
// put(column, numbers) where one is left. What the last one has behind the row is nothing to go by.
template <class Codes, class Put, class Scaled>
inline __attribute__((always_inline)) void dequantize_block(const uint8_t* codes, int64_t first,
                                                            int64_t end, Put put, Scaled scaled) {
  int64_t c = first;
  for (; c + 2 * LANES <= end; c += 2 * LANES)
    put(c, scaled(Codes::numbers(codes + c)), scaled(Codes::numbers(codes + c + LANES)));
  for (; c + LANES <= end; c += LANES) put(c, scaled(Codes::numbers(codes + c)));
  if (c == end) return;
  uint8_t rest[LANES] = {};
  for (int64_t i = c; i < end; ++i) rest[i - c] = codes[i];
  put(c, scaled(Codes::numbers(rest)));
}

template <class Codes, class Put>
inline __attribute__((always_inline)) void dequantize(const uint8_t* codes, const BFloat16* scales,
                                                      int64_t rank, Put put) {
  for (int64_t first = 0; first < rank; first += kCodesPerScale) {
    const int64_t end = least(first + kCodesPerScale, rank);
    const Vector scale = broadcast(to_float(*scales++)), factor = scale * Codes::kFactor;
    // Both at once, unless that is beyond all numbers.
    if (factor[0] - factor[0] == 0.0f || scale[0] != scale[0])
      dequantize_block<Codes>(codes, first, end, put, [&](Vector n) { return n * factor; });
    else
      dequantize_block<Codes>(codes, first, end, put,
                              [&](Vector n) { return n * Codes::kFactor * scale; });
  }
}
