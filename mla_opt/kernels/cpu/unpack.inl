// Numbers of kv_b as vectors of floats. Included by a tier after vectors.inl and one of the widen_*.inl.
//
// A codec takes kPhases vectors from a run of bytes: lane j of vector p is the code of column
// j kPhases + p, because neighbours share a byte.

inline __attribute__((always_inline)) Vector to_floats(Integers values) {
  return __builtin_convertvector(values, Vector);
}

template <int BITS>
struct PackedCodec {
  static constexpr int kPhases = 8 / BITS;
  static constexpr int kBytes = LANES;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from,
                                                           Vector (&to)[kPhases]) {
    const Integers bytes = widen_bytes(from);
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
    to[0] = as_floats(widen_shorts(from) << 16);
  }
};

struct HalfCodec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES * 2;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = widen_halves(from);
  }
};

struct E4M3Codec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = small_floats<0x7f, 7, 20>(widen_bytes(from), 0x1p120f);
  }
};

struct E5M2Codec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = small_floats<0x7c, 7, 21>(widen_bytes(from), 0x1p112f);
  }
};

struct Int8Codec {
  static constexpr int kPhases = 1;
  static constexpr int kBytes = LANES;
  static inline __attribute__((always_inline)) void decode(const uint8_t* from, Vector (&to)[1]) {
    to[0] = to_floats(widen_signed_bytes(from));
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

// Whether rows are full steps, none of which has more than one scale, and columns have one factor.
template <class Codec>
bool fills_steps(const Matrix& m) {
  const int64_t block = m.kv_b->block_size;
  return shares_factors(m) && m.columns % kStep<Codec> == 0 && (block % kStep<Codec> == 0 || block >= m.columns);
}

// Vectors a and b by turns.
inline void interleave(Vector a, Vector b, Vector (&to)[2]) {
#if defined(__clang__)
  for (int lane = 0; lane < LANES; ++lane) {
    to[0][lane] = lane % 2 ? b[lane / 2] : a[lane / 2];
    to[1][lane] = lane % 2 ? b[(LANES + lane) / 2] : a[(LANES + lane) / 2];
  }
#else
  Integers first, second;
  for (int lane = 0; lane < LANES; ++lane) {
    first[lane] = lane / 2 + lane % 2 * LANES;
    second[lane] = (LANES + lane) / 2 + lane % 2 * LANES;
  }
  to[0] = __builtin_shuffle(a, b, first);
  to[1] = __builtin_shuffle(a, b, second);
#endif
}

// Codes of a step into the order of their columns.
inline void store_in_order(const Vector (&codes)[1], float* to) { store(to, codes[0]); }

inline void store_in_order(const Vector (&codes)[2], float* to) {
  Vector ordered[2];
  interleave(codes[0], codes[1], ordered);
  store(to, ordered[0]);
  store(to + LANES, ordered[1]);
}

inline void store_in_order(const Vector (&codes)[4], float* to) {
  Vector even[2], odd[2];
  interleave(codes[0], codes[2], even);
  interleave(codes[1], codes[3], odd);
  for (int half = 0; half < 2; ++half)
    store_in_order({even[half], odd[half]}, to + half * 2 * LANES);
}

// Codes of `count` columns, a multiple of the step, as floats in their order.
template <class Codec>
void unpack_codes(const uint8_t* from, int64_t count, float* to) {
  for (int64_t c = 0; c < count; c += kStep<Codec>) {
    Vector codes[Codec::kPhases];
    Codec::decode(from, codes);
    from += Codec::kBytes;
    store_in_order(codes, to + c);
  }
}

// ---- scales and zero points ----------------------------------------------------------------------

struct Blocks {
  const float* scales;  // [rows, blocks]; null: 1
  const float* zeros;   // [rows, blocks]; null: `zero` everywhere
  float zero;
};

inline int64_t block_size_of(const Matrix& m) {
  return m.kv_b->block_size ? m.kv_b->block_size : m.columns;
}

// Scales of a row as floats; those of the row before it, where the two share them.
inline void read_scales_of_row(const Matrix& m, int64_t blocks, int64_t row, float* to) {
  const bool shared = row > 0 && (m.first_row + row) % m.kv_b->block_rows != 0;
  for (int64_t b = 0; b < blocks; ++b) to[b] = shared ? to[b - blocks] : scale_of(m, row, b);
}

// Scales of all rows as floats, where they lie if they can be read there.
const float* read_scales(const Matrix& m, int64_t blocks, float* room) {
  const KvB& w = *m.kv_b;
  if (!w.scales) return nullptr;
  const int64_t first = m.first_row * blocks, count = m.rows * blocks;
  if (w.block_rows != 1) {
    for (int64_t row = 0; row < m.rows; ++row)
      read_scales_of_row(m, blocks, row, room + row * blocks);
    return room;
  }
  if (w.scales_type == MLA_OPT_FLOAT32) return static_cast<const float*>(w.scales) + first;
  for (int64_t i = 0; i < count; ++i) room[i] = number_in(w.scales, w.scales_type, first + i);
  return room;
}

// Zero points of all rows as floats; null where all are the same.
const float* read_zeros(const Matrix& m, int64_t blocks, float* room) {
  const KvB& w = *m.kv_b;
  if (!w.zero_points) return nullptr;
  int64_t done = 0;
  const int64_t count = m.rows * blocks;
  const bool runs_on = w.bits && w.zero_points_type == MLA_OPT_UINT8 && blocks * w.bits % 8 == 0;
  if (runs_on)
    with_codec(w, [&](auto codec) {
      done = count / kStep<decltype(codec)> * kStep<decltype(codec)>;
      unpack_codes<decltype(codec)>(static_cast<const uint8_t*>(w.zero_points) +
                                        m.first_row * blocks * w.bits / 8,
                                    done, room);
    });
  for (int64_t i = done; i < count; ++i) room[i] = zero_point_of(m, i / blocks, i % blocks);
  return room;
}

int64_t blocks_floats(const Matrix& m) {
  return 2 * in_lines(m.rows * blocks_of_row(*m.kv_b, m.columns));
}

// Those of all rows; `room` has blocks_floats.
Blocks read_blocks(const Matrix& m, float* room) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  Blocks of;
  of.scales = read_scales(m, blocks, room);
  of.zeros = read_zeros(m, blocks, room + in_lines(m.rows * blocks));
  of.zero = of.zeros ? 0.0f : zero_point_of(m, 0, 0);
  return of;
}

// ---- rows ----------------------------------------------------------------------------------------

// Numbers times those of another row.
inline void multiply_columns(const float* from, const float* factors, int64_t count, float* to) {
  int64_t c = 0;
  for (; c + LANES <= count; c += LANES) store(to + c, load(from + c) * load(factors + c));
  for (; c < count; ++c) to[c] = from[c] * factors[c];
}

// The first `whole` numbers of a row, whose codes are there, with their scales and zero points.
inline void scale_codes(const Matrix& m, const Blocks& of, int64_t row, int64_t whole, float* to) {
  if (!of.scales) return;
  const int64_t block = block_size_of(m), blocks = blocks_of_row(*m.kv_b, m.columns);
  for (int64_t b = 0; b * block < whole; ++b) {
    const float scale = of.scales[row * blocks + b];
    const float zero = of.zeros ? of.zeros[row * blocks + b] : of.zero;
    for (int64_t c = b * block; c < least((b + 1) * block, whole); ++c)
      to[c] = (to[c] - zero) * scale;
  }
}

// A row as floats, whatever its form.
template <class Codec>
void unpack_row_of(const Matrix& m, const Blocks& of, int64_t row, float* to) {
  const int64_t whole = m.columns / kStep<Codec> * kStep<Codec>;
  unpack_codes<Codec>(row_of(m, row), whole, to);
  scale_codes(m, of, row, whole, to);
  if (const float* factors = factors_of(m, row)) multiply_columns(to, factors, whole, to);
  for (int64_t c = whole; c < m.columns; ++c) to[c] = static_cast<float>(number_at(m, row, c));
}

void unpack_row(const Matrix& m, const Blocks& of, int64_t row, float* to) {
  with_codec(*m.kv_b, [&](auto codec) { unpack_row_of<decltype(codec)>(m, of, row, to); });
}
