// Numbers of kv_b as vectors of floats. Included by a tier after vectors.inl.
//
// A codec takes kPhases vectors from a run of bytes: lane j of vector p is the code of column
// j kPhases + p, because neighbours share a byte.

typedef uint8_t ByteVector __attribute__((vector_size(LANES)));
typedef int8_t SignedByteVector __attribute__((vector_size(LANES)));
typedef uint16_t ShortVector __attribute__((vector_size(LANES * 2)));

template <class Narrow>
inline __attribute__((always_inline)) Integers widened_integers(const uint8_t* from) {
  Narrow narrow;
  __builtin_memcpy(&narrow, from, sizeof narrow);
  return __builtin_convertvector(narrow, Integers);
}

inline __attribute__((always_inline)) Vector to_floats(Integers values) {
  return __builtin_convertvector(values, Vector);
}

inline __attribute__((always_inline)) Vector as_floats(Integers bits) {
  return reinterpret_cast<Vector>(bits);
}

template <int BITS>
struct PackedCodec {
  static constexpr int kPhases = 8 / BITS;
  static constexpr int kBytes = LANES;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from,
                                                           Vector (&to)[kPhases]) {
    const Integers bytes = widened_integers<ByteVector>(from);
#pragma GCC unroll 4
    for (int p = 0; p < kPhases; ++p) {
      const Integers above = p ? bytes >> (p * BITS) : bytes;
      to[p] = to_floats(p == kPhases - 1 ? above : above & ((1 << BITS) - 1));
    }
  }
};

struct FloatCodec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES * 4;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = load(reinterpret_cast<const float*>(from));
  }
};

struct BFloat16Codec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES * 2;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = as_floats(widened_integers<ShortVector>(from) << 16);
  }
};

// The exponent is too small; a multiplication mends it, and normalises subnormal numbers.
template <int EXPONENT, int MAGNITUDE_BITS, int SHIFT>
inline __attribute__((always_inline)) Vector small_floats(Integers bits, float factor) {
  const Integers magnitude = bits & ((1 << MAGNITUDE_BITS) - 1);
  const Integers sign = (bits >> MAGNITUDE_BITS & 1) << 31;
  const Vector number = as_floats(magnitude << SHIFT) * factor;
  // Infinity, and what is none: all ones in the exponent.
  const Integers beyond = magnitude << SHIFT | 0x7f800000;
  const Integers chosen =
      magnitude >= EXPONENT ? beyond : reinterpret_cast<Integers>(number);
  return as_floats(chosen | sign);
}

struct HalfCodec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES * 2;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = small_floats<0x7c00, 15, 13>(widened_integers<ShortVector>(from), 0x1p112f);
  }
};

struct E4M3Codec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = small_floats<0x7f, 7, 20>(widened_integers<ByteVector>(from), 0x1p120f);
  }
};

struct E5M2Codec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = small_floats<0x7c, 7, 21>(widened_integers<ByteVector>(from), 0x1p112f);
  }
};

struct Int8Codec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = to_floats(widened_integers<SignedByteVector>(from));
  }
};

// Calls use(codec) with the codec of the matrix.
template <class Use>
auto with_codec(const KvB& w, Use use) {
  if (w.bits == 2) return use(PackedCodec<2>{});
  if (w.bits == 4) return use(PackedCodec<4>{});
  if (w.bits == 8 || w.type == MLA_OPT_UINT8) return use(PackedCodec<8>{});
  if (w.type == MLA_OPT_INT8) return use(Int8Codec{});
  if (w.type == MLA_OPT_FLOAT8E4M3FN) return use(E4M3Codec{});
  if (w.type == MLA_OPT_FLOAT8E5M2) return use(E5M2Codec{});
  if (w.type == MLA_OPT_FLOAT16) return use(HalfCodec{});
  if (w.type == MLA_OPT_BFLOAT16) return use(BFloat16Codec{});
  return use(FloatCodec{});
}

// Columns that a codec takes at a time.
template <class Codec>
constexpr int64_t kStep = LANES * Codec::kPhases;

// Whether rows are full steps, none of which has more than one scale.
template <class Codec>
bool fills_steps(const Matrix& m) {
  const int64_t block = m.kv_b->block_size;
  return m.columns % kStep<Codec> == 0 && (block % kStep<Codec> == 0 || block >= m.columns);
}

inline float* write_in_order(const float* from, int64_t count, int64_t step, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i * step] = from[i];
  return to;
}

// A row of full steps as floats.
template <class Codec>
void unpack_steps(const Matrix& m, int64_t row, float* to) {
  const uint8_t* from = row_of(m, row);
  const int64_t block = m.kv_b->block_size ? m.kv_b->block_size : m.columns;
  for (int64_t first = 0; first < m.columns; first += block) {
    const Vector scale = broadcast(scale_of(m, row, first / block));
    const Vector zero = broadcast(zero_point_of(m, row, first / block));
    for (int64_t c = first; c < least(first + block, m.columns); c += kStep<Codec>) {
      Vector codes[Codec::kPhases];
      Codec::decode(from, codes);
      from += Codec::kBytes;
      float ordered[kStep<Codec>];
#pragma GCC unroll 4
      for (int p = 0; p < Codec::kPhases; ++p) {
        const Vector number = (codes[p] - zero) * scale;
        for (int lane = 0; lane < LANES; ++lane) ordered[lane * Codec::kPhases + p] = number[lane];
      }
      __builtin_memcpy(to + c, ordered, sizeof ordered);
    }
  }
}

// A row as floats, whatever its form.
void unpack_row(const Matrix& m, int64_t row, float* to) {
  with_codec(*m.kv_b, [&](auto codec) {
    if (fills_steps<decltype(codec)>(m)) return unpack_steps<decltype(codec)>(m, row, to);
    for (int64_t c = 0; c < m.columns; ++c) to[c] = static_cast<float>(number_at(m, row, c));
  });
}
