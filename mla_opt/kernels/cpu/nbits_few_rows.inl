// Few rows of a: b is read once, as it is stored, two of its rows at a time, and everything else is
// small enough to stay in the nearest cache.

// How b is stored. kBlocks: blocks of a group, 1 also where a block is as long as two groups.
template <int kBitsOf, int kBlocksOf, class ScaleOf, bool kZeroPointsOf>
struct Stored {
  using Scale = ScaleOf;
  static constexpr int kBits = kBitsOf, kBlocks = kBlocksOf;
  static constexpr bool kZeroPoints = kZeroPointsOf;
  static constexpr int kLoads = kBits / 4;  // of 64 bytes a group
};

// One row of b.
template <class Scale>
struct StoredRow {
  const uint8_t* codes;
  const Scale* scales;
  const uint8_t* zero_points;
};

template <class Scale>
StoredRow<Scale> stored_row(const NBits& p, int64_t row) {
  return {p.b + row * bytes_of_row(p), static_cast<const Scale*>(p.scales) + row * blocks_of(p),
          p.zero_points ? p.zero_points + row * zero_bytes_of_row(p) : nullptr};
}

// The first `count` of up to four scales.
__m128 load_scales(const float* from, int count) {
  return _mm_maskz_loadu_ps(static_cast<__mmask8>((1u << count) - 1), from);
}
__m128 load_scales(const Half* from, int count) {
  return _mm_cvtph_ps(_mm_maskz_loadu_epi16(static_cast<__mmask8>((1u << count) - 1), from));
}

// Numbers of the blocks of a group, for its parts.
template <int kBlocks>
__m128 to_parts(__m128 blocks) {
  if constexpr (kBlocks == 4) return blocks;
  if constexpr (kBlocks == 2) return _mm_permute_ps(blocks, 0x50);
  return _mm_permute_ps(blocks, 0);
}

// Where the numbers of a group are; a last one that is not whole has only so many parts.
struct Place {
  int64_t group, block, parts;
};

template <class S>
Place place_of(const NBits& p, int64_t group) {
  const int64_t parts = parts_of(p) - group * kParts;
  const int64_t block = S::kBlocks > 1 ? group * S::kBlocks : group >> (p.block_size > kGroup);
  return {group, block, parts < kParts ? parts : kParts};
}

template <class S>
__m128 scales_at(const StoredRow<typename S::Scale>& row, const Place& at) {
  const int blocks = S::kBlocks == 1 ? 1 : static_cast<int>(at.parts * S::kBlocks / kParts);
  return to_parts<S::kBlocks>(load_scales(row.scales + at.block, blocks));
}

template <class S>
__m512i zero_points_at(const StoredRow<typename S::Scale>& row, const Place& at, __m512i lanes) {
  const int64_t blocks = S::kBlocks == 1 ? 1 : at.parts * S::kBlocks / kParts;
  const int64_t first = at.block * S::kBits;  // bit
  uint32_t bits = 0;
  std::memcpy(&bits, row.zero_points + first / 8,
              static_cast<size_t>((first % 8 + blocks * S::kBits + 7) / 8));
  if constexpr (S::kBits == 4) bits = _pdep_u32(bits >> first % 8, 0x0f0f0f0f);
  const __m128i each = _mm_cvtepu8_epi32(_mm_cvtsi32_si128(static_cast<int>(bits)));
  const __m128 parts = to_parts<S::kBlocks>(_mm_castsi128_ps(each));
  return _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(_mm_castps_si128(parts)));
}

__m512i codes_at(const uint8_t* from, int64_t bytes) {
  if (bytes >= 64) return _mm512_loadu_si512(from);
  if (bytes <= 0) return _mm512_setzero_si512();
  return _mm512_maskz_loadu_epi8((uint64_t{1} << bytes) - 1, from);
}

// Which part of a group the lanes of a load belong to.
template <class S>
__m512i parts_of_lanes(int load) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_add_epi32(_mm512_srli_epi32(lane, S::kBits == 4 ? 2 : 3), _mm512_set1_epi32(load * 2));
}

// 64 bytes of b with the rows of a: sums[i] += scales * (codes of b * codes of row i).
template <class S>
__m512i add_products(__m512i start, __m512i bytes, const int8_t* a) {
  if constexpr (S::kBits == 8) return _mm512_dpbusd_epi32(start, bytes, _mm512_loadu_si512(a));
  const __m512i mask = _mm512_set1_epi8(15);
  const __m512i even = _mm512_and_si512(bytes, mask);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), mask);
  const __m512i sums = _mm512_dpbusd_epi32(start, even, _mm512_loadu_si512(a));
  return _mm512_dpbusd_epi32(sums, odd, _mm512_loadu_si512(a + 64));
}

// What rows of a have for the products with a group.
struct RoundedGroup {
  const int8_t* codes;
  const float* scales;
  const int32_t* lane_sums;
};

RoundedGroup rounded_group(const NBits& p, const RoundedRows& rounded, int64_t row, int64_t group) {
  const int64_t at = row * groups_of(p) + group;
  return {rounded.codes + at * kGroup, rounded.scales + at * kParts,
          rounded.lane_sums + at * kLaneSums};
}

template <class S, int kRows>
inline __attribute__((always_inline)) void multiply_group(const NBits& p, const RoundedRows& rounded,
                                                          int64_t first_row,
                                                          const StoredRow<typename S::Scale>& b,
                                                          const Place& at, __m512 (&sums)[kRows]) {
  const __m128 scales = scales_at<S>(b, at);
  for (int load = 0; load < S::kLoads; ++load) {
    const int64_t place = (at.group * S::kLoads + load) * 64;
    const __m512i bytes =
        codes_at(b.codes + place, at.parts * kPart * S::kBits / 8 - load * 64);
    const __m512i lanes = parts_of_lanes<S>(load);
    __m512i zero_points = _mm512_setzero_si512();
    if constexpr (S::kZeroPoints) zero_points = zero_points_at<S>(b, at, lanes);
    for (int row = 0; row < kRows; ++row) {
      const RoundedGroup a = rounded_group(p, rounded, first_row + row, at.group);
      __m512i start = _mm512_loadu_si512(a.lane_sums + load * 16);
      if constexpr (S::kZeroPoints)
        start = _mm512_dpwssd_epi32(_mm512_setzero_si512(), zero_points, start);
      const __m512i products = add_products<S>(start, bytes, a.codes + load * 64);
      const __m512 both = _mm512_castps128_ps512(_mm_mul_ps(scales, _mm_loadu_ps(a.scales)));
      sums[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), _mm512_permutexvar_ps(lanes, both),
                                  sums[row]);
    }
  }
}

// Two rows of b, which may be the same, with kRows of a.
template <class S, int kRows>
void multiply_pair(const NBits& p, const RoundedRows& rounded, int64_t first_row, int64_t column,
                   int64_t other) {
  // Far enough ahead for memory, near enough to be still there.
  constexpr int64_t kAhead = 1024;
  const auto one = stored_row<typename S::Scale>(p, column), two = stored_row<typename S::Scale>(p, other);
  __m512 of_one[kRows], of_two[kRows];
  for (int row = 0; row < kRows; ++row) of_one[row] = of_two[row] = _mm512_setzero_ps();
  const int64_t groups = groups_of(p), whole = parts_of(p) / kParts;
  int64_t group = 0;
  for (; group < whole; ++group) {
    Place at = place_of<S>(p, group);
    at.parts = kParts;  // which the compiler is to know
    _mm_prefetch(reinterpret_cast<const char*>(one.codes + group * 64 * S::kLoads + kAhead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(two.codes + group * 64 * S::kLoads + kAhead), _MM_HINT_T0);
    multiply_group<S, kRows>(p, rounded, first_row, one, at, of_one);
    multiply_group<S, kRows>(p, rounded, first_row, two, at, of_two);
  }
  for (; group < groups; ++group) {
    const Place at = place_of<S>(p, group);
    multiply_group<S, kRows>(p, rounded, first_row, one, at, of_one);
    multiply_group<S, kRows>(p, rounded, first_row, two, at, of_two);
  }
  for (int row = 0; row < kRows; ++row) {
    float* y = p.y + (first_row + row) * p.columns;
    y[column] = _mm512_reduce_add_ps(of_one[row]) + (p.bias ? p.bias[column] : 0.0f);
    y[other] = _mm512_reduce_add_ps(of_two[row]) + (p.bias ? p.bias[other] : 0.0f);
  }
}

template <class S>
void multiply_columns(const NBits& p, const RoundedRows& rounded, int64_t first, int64_t end) {
  // Two places of b far from each other, whose lines come from memory side by side.
  const int64_t half = (end - first + 1) / 2;
  for (int64_t column = first; column < first + half; ++column) {
    const int64_t other = column + half < end ? column + half : column;
    int64_t row = 0;
    for (; row + 4 <= p.rows; row += 4) multiply_pair<S, 4>(p, rounded, row, column, other);
    for (; row + 2 <= p.rows; row += 2) multiply_pair<S, 2>(p, rounded, row, column, other);
    for (; row < p.rows; ++row) multiply_pair<S, 1>(p, rounded, row, column, other);
  }
}

template <int kBits, int kBlocks, class Scale>
void multiply_blocks(const NBits& p, const RoundedRows& rounded, int64_t first, int64_t end) {
  if (p.zero_points)
    return multiply_columns<Stored<kBits, kBlocks, Scale, true>>(p, rounded, first, end);
  multiply_columns<Stored<kBits, kBlocks, Scale, false>>(p, rounded, first, end);
}

template <int kBits, class Scale>
void multiply_stored(const NBits& p, const RoundedRows& rounded, int64_t first, int64_t end) {
  if (p.block_size == 32) return multiply_blocks<kBits, 4, Scale>(p, rounded, first, end);
  if (p.block_size == 64) return multiply_blocks<kBits, 2, Scale>(p, rounded, first, end);
  multiply_blocks<kBits, 1, Scale>(p, rounded, first, end);
}

template <class Scale>
void multiply_scaled(const NBits& p, const RoundedRows& rounded, int64_t first, int64_t end) {
  if (p.bits == 8) return multiply_stored<8, Scale>(p, rounded, first, end);
  multiply_stored<4, Scale>(p, rounded, first, end);
}

void multiply_few(const NBits& p, const RoundedRows& rounded, int64_t first, int64_t end) {
  if (p.scales_type == MLA_OPT_FLOAT16) return multiply_scaled<Half>(p, rounded, first, end);
  multiply_scaled<float>(p, rounded, first, end);
}
