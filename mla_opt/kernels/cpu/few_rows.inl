// Products of a few rows with a matrix straight from its bits, which are read once for each of the
// rows. Included by a tier after unpack.inl.
//
//   sum_rows  out[block] += a[r] s[r, block] (code[r, block] - z[r, block])
//   dot_rows  out[r]     += s[r, block] (code[r, block] - z[r, block]) . a[block]
//
// Zero points are left out of the products and taken off the sums. Factors of columns, which all rows
// share, are multiplied into out[block], and into a[block].

constexpr int64_t kFewRows = 6;
// Vectors of sums that are kept in registers.
constexpr int kSums = LANES == 16 ? 8 : 4;
constexpr int kRowsAtOnce = 4;

// What a matrix is read with, and where the numbers of one product are kept.
struct FewRows {
  Blocks of;
  float* factors;  // [rows, blocks]: what the codes of a block are multiplied with
  float* shifts;   // [blocks]
  float* ordered;  // [columns]: a row in the order of the codec
  float* weighed;  // [columns]: a row times the factors
};

bool prepare_few(const Matrix& m, Scratch& scratch, FewRows& few) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  const int64_t numbers = in_lines(m.rows * blocks), columns = in_lines(m.columns);
  const int64_t floats = blocks_floats(m) + numbers + in_lines(blocks) + 2 * columns;
  auto* start =
      reinterpret_cast<float*>(scratch.reserve(static_cast<size_t>(floats) * sizeof(float)));
  if (!start) return false;
  few.of = read_blocks(m, start);
  few.factors = start + blocks_floats(m);
  few.shifts = few.factors + numbers;
  few.ordered = few.shifts + in_lines(blocks);
  few.weighed = few.ordered + columns;
  return true;
}

// ---- out[c] = sum over r -------------------------------------------------------------------------

// Factors a[r] s[r, block], and shifts of the blocks.
void weigh_rows(const Matrix& m, const float* a, const FewRows& few) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  fill(few.shifts, blocks, 0.0f);
  for (int64_t r = 0; r < m.rows; ++r) {
    float* factors = few.factors + r * blocks;
    for (int64_t b = 0; b < blocks; ++b)
      factors[b] = few.of.scales ? a[r] * few.of.scales[r * blocks + b] : a[r];
    for (int64_t b = 0; b < blocks; ++b)
      few.shifts[b] += factors[b] * (few.of.zeros ? few.of.zeros[r * blocks + b] : few.of.zero);
  }
}

// Sums of STEPS steps of columns from `column` on.
template <class Codec, int STEPS>
void sum_strip(const Matrix& m, const FewRows& few, int64_t column, float* out) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns), block = block_size_of(m);
  const int64_t stride = bytes_of_row(*m.kv_b, m.columns);
  int64_t block_of[STEPS];
  for (int s = 0; s < STEPS; ++s) block_of[s] = (column + s * kStep<Codec>) / block;
  const uint8_t* from = row_of(m, 0) + column / kStep<Codec> * Codec::kBytes;
  const float* factors = few.factors;
  Vector sums[STEPS][Codec::kPhases] = {};
  for (int64_t r = 0; r < m.rows; ++r) {
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; ++s) {
      Vector codes[Codec::kPhases];
      Codec::decode(from + s * Codec::kBytes, codes);
      const Vector factor = broadcast(factors[block_of[s]]);
#pragma GCC unroll 4
      for (int p = 0; p < Codec::kPhases; ++p) sums[s][p] += factor * codes[p];
    }
    from += stride;
    factors += blocks;
  }
#pragma GCC unroll 8
  for (int s = 0; s < STEPS; ++s)
#pragma GCC unroll 4
    for (int p = 0; p < Codec::kPhases; ++p) {
      const Vector sum = sums[s][p] - broadcast(few.shifts[block_of[s]]);
      float* to = out + column + s * kStep<Codec> + p;
      for (int lane = 0; lane < LANES; ++lane) to[lane * Codec::kPhases] = sum[lane];
    }
}

template <class Codec>
void sum_row(const Matrix& m, const float* a, const FewRows& few, float* out) {
  constexpr int kSteps = kSums / Codec::kPhases;
  weigh_rows(m, a, few);
  int64_t column = 0;
  for (; column + kSteps * kStep<Codec> <= m.columns; column += kSteps * kStep<Codec>)
    sum_strip<Codec, kSteps>(m, few, column, out);
  for (; column < m.columns; column += kStep<Codec>) sum_strip<Codec, 1>(m, few, column, out);
  if (const float* factors = factors_of(m, 0)) multiply_columns(out, factors, m.columns, out);
}

// ---- out[r] = sum over c -------------------------------------------------------------------------

// A row in the order in which the codec gives columns, and the sums of its blocks.
template <class Codec>
void order_row(const Matrix& m, const float* a, const FewRows& few) {
  float* to = few.ordered;
  for (int64_t c = 0; c < m.columns; c += kStep<Codec>)
    for (int p = 0; p < Codec::kPhases; ++p)
      for (int lane = 0; lane < LANES; ++lane) *to++ = a[c + lane * Codec::kPhases + p];
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns), block = block_size_of(m);
  for (int64_t b = 0; b < blocks; ++b) {
    Vector sum = {};
    for (int64_t c = b * block; c < least((b + 1) * block, m.columns); c += LANES)
      sum += load(a + c);
    few.shifts[b] = 0.0f;
    for (int lane = 0; lane < LANES; ++lane) few.shifts[b] += sum[lane];
  }
}

inline float sum_of(Vector vector) {
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; ++lane) sum += vector[lane];
  return sum;
}

// What the zero points of a row take off its sum.
inline float shift_of(const Matrix& m, const FewRows& few, int64_t row) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  if (!few.of.zeros && few.of.zero == 0.0f) return 0.0f;
  float shift = 0.0f;
  for (int64_t b = 0; b < blocks; ++b) {
    const float zero = few.of.zeros ? few.of.zeros[row * blocks + b] : few.of.zero;
    shift += few.of.scales[row * blocks + b] * zero * few.shifts[b];
  }
  return shift;
}

template <class Codec, int ROWS>
void dot_strip(const Matrix& m, const FewRows& few, int64_t row, float* out) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns), block = block_size_of(m);
  const int64_t stride = bytes_of_row(*m.kv_b, m.columns);
  const uint8_t* from = row_of(m, row);
  const float* ordered = few.ordered;
  Vector sums[ROWS] = {};
  for (int64_t b = 0; b < blocks; ++b) {
    Vector of_block[ROWS] = {};
    const int64_t end = least((b + 1) * block, m.columns);
    for (int64_t c = b * block; c < end; c += kStep<Codec>) {
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        Vector codes[Codec::kPhases];
        Codec::decode(from + r * stride, codes);
#pragma GCC unroll 4
        for (int p = 0; p < Codec::kPhases; ++p)
          of_block[r] += codes[p] * load(ordered + p * LANES);
      }
      from += Codec::kBytes;
      ordered += kStep<Codec>;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
      sums[r] += few.of.scales ? of_block[r] * few.of.scales[(row + r) * blocks + b] : of_block[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) out[row + r] = sum_of(sums[r]) - shift_of(m, few, row + r);
}

template <class Codec>
void dot_row(const Matrix& m, const float* a, const FewRows& few, float* out) {
  const float* factors = factors_of(m, 0);
  if (factors) multiply_columns(a, factors, m.columns, few.weighed);
  order_row<Codec>(m, factors ? few.weighed : a, few);
  int64_t row = 0;
  for (; row + kRowsAtOnce <= m.rows; row += kRowsAtOnce)
    dot_strip<Codec, kRowsAtOnce>(m, few, row, out);
  for (; row < m.rows; ++row) dot_strip<Codec, 1>(m, few, row, out);
}

// ---- both ----------------------------------------------------------------------------------------

// A row times a number, where the blocks of the matrix are parts of a codec's steps.
void sum_unpacked_row(const Matrix& m, const float* a, const FewRows& few, float* out) {
  fill(out, m.columns, 0.0f);
  for (int64_t r = 0; r < m.rows; ++r) {
    unpack_row(m, few.of, r, few.ordered);
    for (int64_t c = 0; c < m.columns; ++c) out[c] += a[r] * few.ordered[c];
  }
}

void dot_unpacked_row(const Matrix& m, const float* a, const FewRows& few, float* out) {
  const int64_t whole = m.columns / LANES * LANES;
  for (int64_t r = 0; r < m.rows; ++r) {
    unpack_row(m, few.of, r, few.ordered);
    Vector sum = {};
    for (int64_t c = 0; c < whole; c += LANES) sum += load(a + c) * load(few.ordered + c);
    out[r] = sum_of(sum);
    for (int64_t c = whole; c < m.columns; ++c) out[r] += a[c] * few.ordered[c];
  }
}

bool sum_few_rows(const Matrix& m, const FloatRows& a, float* out, int64_t stride,
                  Scratch& scratch) {
  FewRows few;
  if (!prepare_few(m, scratch, few)) return false;
  with_codec(*m.kv_b, [&](auto codec) {
    const auto sum = fills_steps<decltype(codec)>(m) ? sum_row<decltype(codec)> : sum_unpacked_row;
    for (int64_t i = 0; i < a.count; ++i) sum(m, a.at + i * a.stride, few, out + i * stride);
  });
  return true;
}

bool dot_few_rows(const Matrix& m, const FloatRows& a, float* out, int64_t stride,
                  Scratch& scratch) {
  FewRows few;
  if (!prepare_few(m, scratch, few)) return false;
  with_codec(*m.kv_b, [&](auto codec) {
    const auto dot = fills_steps<decltype(codec)>(m) ? dot_row<decltype(codec)> : dot_unpacked_row;
    for (int64_t i = 0; i < a.count; ++i) dot(m, a.at + i * a.stride, few, out + i * stride);
  });
  return true;
}
