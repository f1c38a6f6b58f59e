// Products of many rows with a matrix whose numbers are unpacked first, into vectors of columns that
// stay in the second-level cache. Included by a tier after unpack.inl and few_rows.inl.
//
//   packed  [groups of SCORE_VECTORS vectors, inner dims, vectors]
//
// The register tiles are those of scores (products_fp32.inl): rows are broadcast, columns are lanes.

constexpr int64_t kGroup = SCORE_VECTORS * LANES;

inline int64_t in_groups(int64_t columns) { return (columns + kGroup - 1) / kGroup * kGroup; }

// One tile: ROWS rows, a group of columns.
template <int ROWS>
void multiply_tile(const float* a, int64_t a_stride, const float* packed, int64_t inner, float* out,
                   int64_t stride) {
  Vector tile[ROWS][SCORE_VECTORS] = {};
  for (int64_t d = 0; d < inner; ++d) {
    Vector column[SCORE_VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < SCORE_VECTORS; ++v) column[v] = load(packed + v * LANES);
    packed += kGroup;
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; ++r) {
      const Vector row = broadcast(a[r * a_stride + d]);
#pragma GCC unroll 8
      for (int v = 0; v < SCORE_VECTORS; ++v) tile[r][v] += row * column[v];
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < SCORE_VECTORS; ++v) store(out + r * stride + v * LANES, tile[r][v]);
}

// Rows times all groups of columns.
void multiply_packed(const float* packed, int64_t inner, int64_t columns, const FloatRows& a,
                     float* out, int64_t stride) {
  for (int64_t column = 0; column < columns; column += kGroup) {
    const float* group = packed + column * inner;
    int64_t row = 0;
    const auto tile = [&](auto size) {
      for (; row + size.value <= a.count; row += size.value)
        multiply_tile<size.value>(a.at + row * a.stride, a.stride, group, inner,
                                  out + row * stride + column, stride);
    };
    tile(Size<SCORE_KEYS_WIDE>{});
    tile(Size<4>{});
    tile(Size<1>{});
  }
}

// Something even where a matrix has no row: null says that there is no memory.
float* reserve_floats(int64_t floats, Scratch& scratch) {
  floats = greatest(floats, LANES);
  return reinterpret_cast<float*>(scratch.reserve(static_cast<size_t>(floats) * sizeof(float)));
}

// Columns of the matrix into lanes; the inner dims are its rows.
bool pack_as_stored(const Matrix& m, float* packed, Scratch& scratch) {
  float* room = reserve_floats(blocks_floats(m) + in_groups(m.columns), scratch);
  if (!room) return false;
  const Blocks of = read_blocks(m, room);
  float* row = room + blocks_floats(m);
  fill(row + m.columns, in_groups(m.columns) - m.columns, 0.0f);
  for (int64_t r = 0; r < m.rows; ++r) {
    unpack_row(m, of, r, row);
    for (int64_t column = 0; column < in_groups(m.columns); column += kGroup)
      __builtin_memcpy(packed + column * m.rows + r * kGroup, row + column, kGroup * sizeof(float));
  }
  return true;
}

// Rows of the matrix into lanes; the inner dims are its columns.
bool pack_turned(const Matrix& m, float* packed, const HeadScratch& scratch) {
  const int64_t stride = in_lines(m.columns) + 16;
  float* room = reserve_floats(blocks_floats(m) + LANES * stride, scratch.rows);
  if (!room) return false;
  const Blocks of = read_blocks(m, room);
  float* rows = room + blocks_floats(m);
  for (int64_t first = 0; first < in_groups(m.rows); first += LANES) {
    for (int lane = 0; lane < LANES; ++lane) {
      if (first + lane < m.rows)
        unpack_row(m, of, first + lane, rows + lane * stride);
      else
        fill(rows + lane * stride, m.columns, 0.0f);
    }
    float* to = packed + first / kGroup * kGroup * m.columns + first % kGroup;
    for (int64_t c = 0; c < m.columns; ++c, to += kGroup)
      for (int lane = 0; lane < LANES; ++lane) to[lane] = rows[lane * stride + c];
  }
  return true;
}

int64_t packed_floats(const Matrix& m) { return in_groups(m.rows) * m.columns; }

bool multiply_turned(const Matrix& m, const float* packed, const FloatRows& a, float* out,
                     int64_t stride, Scratch& /*scratch*/) {
  multiply_packed(packed, m.columns, m.rows, a, out, stride);
  return true;
}

bool unpack_all(const Matrix& m, float* rows, Scratch& scratch) {
  float* room = reserve_floats(blocks_floats(m), scratch);
  if (!room) return false;
  const Blocks of = read_blocks(m, room);
  for (int64_t r = 0; r < m.rows; ++r) unpack_row(m, of, r, rows + r * m.columns);
  return true;
}

int64_t same_rows(int64_t rows) { return rows; }

bool sum_rows(const Matrix& m, const FloatRows& a, float* out, int64_t stride,
              const HeadScratch& scratch) {
  if (a.count <= kFewRows)
    return sum_few_rows(m, a, out, stride, scratch.rows);
  float* packed = reserve_floats(in_groups(m.columns) * m.rows, scratch.packed);
  if (!packed || !pack_as_stored(m, packed, scratch.rows)) return false;
  multiply_packed(packed, m.rows, m.columns, a, out, stride);
  return true;
}

bool dot_rows(const Matrix& m, const FloatRows& a, float* out, int64_t stride,
              const HeadScratch& scratch) {
  if (a.count <= kFewRows)
    return dot_few_rows(m, a, out, stride, scratch.rows);
  float* packed = reserve_floats(packed_floats(m), scratch.packed);
  if (!packed || !pack_turned(m, packed, scratch)) return false;
  return multiply_turned(m, packed, a, out, stride, scratch.rows);
}

constexpr HeadProducts kHeadProducts = {in_groups,     same_rows,   sum_rows,        dot_rows,
                                        packed_floats, pack_turned, multiply_turned, unpack_all};
