// Products of a few rows with a matrix straight from its bits, which are read once for each of the
// rows. Included by a tier after unpack.inl.
//
//   sum_rows  out[block] += a[r] s[r, block] (code[r, block] - z[r, block])
//   dot_rows  out[r]     += s[r, block] (code[r, block] - z[r, block]) . a[block]
//
// Zero points are left out of the products and taken off the sums.

constexpr int64_t kFewRows = 6;
// Vectors of sums that are kept in registers.
constexpr int kSums = LANES == 16 ? 8 : 4;
constexpr int kRowsAtOnce = 4;

// Where the numbers of one product are kept.
struct FewRows {
  float* factors;  // [rows, blocks]: what the codes of a block are multiplied with
  float* shifts;   // [blocks]
  float* vectors;  // [columns]: a row in the order of the codec
};

bool reserve_few(const Matrix& m, Scratch& scratch, FewRows& few) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  const int64_t sizes[] = {in_lines(m.rows * blocks), in_lines(blocks), in_lines(m.columns)};
  auto* start = reinterpret_cast<float*>(
      scratch.reserve(static_cast<size_t>(sizes[0] + sizes[1] + sizes[2]) * sizeof(float)));
  if (!start) return false;
  few = {start, start + sizes[0], start + sizes[0] + sizes[1]};
  return true;
}

// ---- out[c] = sum over r -------------------------------------------------------------------------

// Factors a[r] s[r, block], and shifts of the blocks.
void weigh_rows(const Matrix& m, const float* a, const FewRows& few) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  fill(few.shifts, blocks, 0.0f);
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t b = 0; b < blocks; ++b) {
      const float factor = a[r] * scale_of(m, r, b);
      few.factors[r * blocks + b] = factor;
      few.shifts[b] += factor * zero_point_of(m, r, b);
    }
}

// Sums of STEPS steps of columns from `column` on.
template <class Codec, int STEPS>
void sum_strip(const Matrix& m, const FewRows& few, int64_t column, float* out) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  const int64_t block = m.kv_b->block_size ? m.kv_b->block_size : m.columns;
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
  for (int s = 0; s < STEPS; ++s)
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
}

// ---- out[r] = sum over c -------------------------------------------------------------------------

// A row in the order in which the codec gives columns, and what zero points take off: the sums of its
// blocks.
template <class Codec>
void order_row(const Matrix& m, const float* a, const FewRows& few) {
  const int64_t block = m.kv_b->block_size ? m.kv_b->block_size : m.columns;
  float* to = few.vectors;
  for (int64_t c = 0; c < m.columns; c += kStep<Codec>)
    for (int p = 0; p < Codec::kPhases; ++p)
      for (int lane = 0; lane < LANES; ++lane) *to++ = a[c + lane * Codec::kPhases + p];
  fill(few.shifts, blocks_of_row(*m.kv_b, m.columns), 0.0f);
  for (int64_t c = 0; c < m.columns; ++c) few.shifts[c / block] += a[c];
}

void read_scales(const Matrix& m, const FewRows& few) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  for (int64_t r = 0; r < m.rows; ++r)
    for (int64_t b = 0; b < blocks; ++b) few.factors[r * blocks + b] = scale_of(m, r, b);
}

inline float sum_of(Vector vector) {
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; ++lane) sum += vector[lane];
  return sum;
}

template <class Codec, int ROWS>
void dot_strip(const Matrix& m, const FewRows& few, int64_t row, float* out) {
  const int64_t blocks = blocks_of_row(*m.kv_b, m.columns);
  const int64_t block = m.kv_b->block_size ? m.kv_b->block_size : m.columns;
  const int64_t stride = bytes_of_row(*m.kv_b, m.columns);
  const uint8_t* from = row_of(m, row);
  const float* vectors = few.vectors;
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
          of_block[r] += codes[p] * load(vectors + p * LANES);
      }
      from += Codec::kBytes;
      vectors += kStep<Codec>;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
      sums[r] += of_block[r] * few.factors[(row + r) * blocks + b];
  }
  for (int r = 0; r < ROWS; ++r) {
    out[row + r] = sum_of(sums[r]);
    if (!has_zero_points(*m.kv_b)) continue;
    for (int64_t b = 0; b < blocks; ++b)
      out[row + r] -=
          few.factors[(row + r) * blocks + b] * zero_point_of(m, row + r, b) * few.shifts[b];
  }
}

template <class Codec>
void dot_row(const Matrix& m, const float* a, const FewRows& few, float* out) {
  order_row<Codec>(m, a, few);
  int64_t row = 0;
  for (; row + kRowsAtOnce <= m.rows; row += kRowsAtOnce)
    dot_strip<Codec, kRowsAtOnce>(m, few, row, out);
  for (; row < m.rows; ++row) dot_strip<Codec, 1>(m, few, row, out);
}

// ---- both ----------------------------------------------------------------------------------------

bool fills_steps_of_codec(const Matrix& m) {
  return with_codec(*m.kv_b, [&](auto codec) { return fills_steps<decltype(codec)>(m); });
}

bool sum_few_rows(const Matrix& m, const FloatRows& a, float* out, int64_t stride,
                  Scratch& scratch) {
  FewRows few;
  if (!reserve_few(m, scratch, few)) return false;
  with_codec(*m.kv_b, [&](auto codec) {
    for (int64_t i = 0; i < a.count; ++i)
      sum_row<decltype(codec)>(m, a.at + i * a.stride, few, out + i * stride);
  });
  return true;
}

bool dot_few_rows(const Matrix& m, const FloatRows& a, float* out, int64_t stride,
                  Scratch& scratch) {
  FewRows few;
  if (!reserve_few(m, scratch, few)) return false;
  read_scales(m, few);
  with_codec(*m.kv_b, [&](auto codec) {
    for (int64_t i = 0; i < a.count; ++i)
      dot_row<decltype(codec)>(m, a.at + i * a.stride, few, out + i * stride);
  });
  return true;
}
