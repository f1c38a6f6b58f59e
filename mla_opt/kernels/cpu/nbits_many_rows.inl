// Many rows of a: 32 rows of b become a panel, in which each vector holds the same four numbers of 16
// rows, and a tile of y is 6 rows of a by two such vectors.

constexpr int64_t kPanelColumns = 32;
constexpr int kTileRows = 6;

// Bytes of a part of 32 numbers in a panel: 8 times four numbers of each row.
constexpr int64_t kPanelPart = kPart * kPanelColumns;

struct Panel {
  uint8_t* codes;        // [parts, 8, kPanelColumns, 4]
  float* scales;         // [parts, kPanelColumns]
  int32_t* zero_points;  // likewise
};

Panel panel_at(const NBits& p, void* memory) {
  const int64_t parts = parts_of(p);
  auto* codes = static_cast<uint8_t*>(memory);
  auto* scales = reinterpret_cast<float*>(codes + parts * kPanelPart);
  return {codes, scales, reinterpret_cast<int32_t*>(scales + parts * kPanelColumns)};
}

size_t panel_bytes(const NBits& p) {
  const int64_t numbers = kPanelPart + kPanelColumns * (p.zero_points ? 8 : 4);
  return static_cast<size_t>(parts_of(p) * numbers);
}

__m128i load_piece(const uint8_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// 16 bytes of each of 16 rows, turned: turned[i] holds bytes 4i .. 4i + 3 of all of them.
void turn(const uint8_t* const (&rows)[16], int64_t at, __m512i (&turned)[4]) {
  __m512i quarters[4];
  for (int i = 0; i < 4; ++i) {
    __m512i quarter = _mm512_castsi128_si512(load_piece(rows[i] + at));
    quarter = _mm512_inserti32x4(quarter, load_piece(rows[4 + i] + at), 1);
    quarter = _mm512_inserti32x4(quarter, load_piece(rows[8 + i] + at), 2);
    quarters[i] = _mm512_inserti32x4(quarter, load_piece(rows[12 + i] + at), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(quarters[0], quarters[1]);
  const __m512i b = _mm512_unpackhi_epi32(quarters[0], quarters[1]);
  const __m512i c = _mm512_unpacklo_epi32(quarters[2], quarters[3]);
  const __m512i d = _mm512_unpackhi_epi32(quarters[2], quarters[3]);
  turned[0] = _mm512_unpacklo_epi64(a, c);
  turned[1] = _mm512_unpackhi_epi64(a, c);
  turned[2] = _mm512_unpacklo_epi64(b, d);
  turned[3] = _mm512_unpackhi_epi64(b, d);
}

// Half a panel, of 16 rows of b; vectors are `kPanelColumns` fours apart.
void pack_codes(const NBits& p, const uint8_t* const (&rows)[16], uint8_t* to) {
  const __m512i mask = _mm512_set1_epi8(15);
  for (int64_t part = 0; part < parts_of(p); ++part, to += kPanelPart) {
    __m512i front[4], back[4];
    turn(rows, part * kPart * p.bits / 8, front);
    if (p.bits == 8) turn(rows, part * kPart + 16, back);
    for (int i = 0; i < 4; ++i) {
      const __m512i low = p.bits == 8 ? front[i] : _mm512_and_si512(front[i], mask);
      const __m512i high =
          p.bits == 8 ? back[i] : _mm512_and_si512(_mm512_srli_epi16(front[i], 4), mask);
      _mm512_storeu_si512(to + i * kPanelColumns * 4, low);
      _mm512_storeu_si512(to + (4 + i) * kPanelColumns * 4, high);
    }
  }
}

int32_t zero_point(const NBits& p, const uint8_t* zero_points, int64_t block) {
  if (p.bits == 8) return zero_points[block];
  return zero_points[block / 2] >> block % 2 * 4 & 15;
}

// Scales and zero points of a row of b, the `column`-th of a panel.
template <class Scale>
void pack_scales(const NBits& p, const StoredRow<Scale>& row, const Panel& panel, int64_t column) {
  const int64_t parts = p.block_size / kPart;
  for (int64_t block = 0; block < blocks_of(p); ++block) {
    const float scale = to_float(row.scales[block]);
    const int32_t zero = p.zero_points ? zero_point(p, row.zero_points, block) : 0;
    for (int64_t part = block * parts; part < (block + 1) * parts; ++part) {
      panel.scales[part * kPanelColumns + column] = scale;
      if (p.zero_points) panel.zero_points[part * kPanelColumns + column] = zero;
    }
  }
}

// Columns behind the last one are its copies, which nobody writes.
template <class Scale>
void pack_scaled(const NBits& p, int64_t first_column, void* memory) {
  const Panel panel = panel_at(p, memory);
  for (int64_t half = 0; half < kPanelColumns; half += 16) {
    const uint8_t* rows[16];
    for (int64_t i = 0; i < 16; ++i) {
      const int64_t column = first_column + half + i;
      const auto row = stored_row<Scale>(p, column < p.columns ? column : p.columns - 1);
      rows[i] = row.codes;
      pack_scales(p, row, panel, half + i);
    }
    pack_codes(p, rows, panel.codes + half * 4);
  }
}

void pack_panel(const NBits& p, int64_t first_column, void* memory) {
  if (p.scales_type == MLA_OPT_FLOAT16) return pack_scaled<Half>(p, first_column, memory);
  pack_scaled<float>(p, first_column, memory);
}

// A tile of y: its first row of `a`, as it was rounded, and what it is multiplied with.
struct PanelTile {
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
  int64_t groups;
};

int32_t four_codes(const int8_t* at) {
  int32_t four;
  std::memcpy(&four, at, sizeof four);
  return four;
}

template <int kBits, bool kZeroPoints, int kRows>
void multiply_tile(const NBits& p, const Panel& panel, const PanelTile& a, float* y, uint32_t columns,
                   const float* bias) {
  constexpr int64_t kOfPart = kBits == 4 ? 16 : 32, kBack = kBits == 4 ? 64 : 16;
  const int64_t parts = parts_of(p);
  __m512 sums[kRows][2];
  for (int row = 0; row < kRows; ++row) sums[row][0] = sums[row][1] = _mm512_setzero_ps();
  for (int64_t part = 0; part < parts; ++part) {
    const int8_t* codes = a.codes + part / kParts * kGroup + part % kParts * kOfPart;
    const uint8_t* b = panel.codes + part * kPanelPart;
    __m512i products[kRows][2];
    for (int row = 0; row < kRows; ++row) {
      const __m512i sum = _mm512_set1_epi32(a.sums[row * a.groups * kParts + part]);
      products[row][0] = products[row][1] = sum;
      if constexpr (kZeroPoints) {
        const int32_t* zero = panel.zero_points + part * kPanelColumns;
        const __m512i nothing = _mm512_setzero_si512();
        products[row][0] = _mm512_dpwssd_epi32(nothing, _mm512_loadu_si512(zero), sum);
        products[row][1] = _mm512_dpwssd_epi32(nothing, _mm512_loadu_si512(zero + 16), sum);
      }
    }
    for (int i = 0; i < 8; ++i) {
      const __m512i left = _mm512_loadu_si512(b + i * kPanelColumns * 4);
      const __m512i right = _mm512_loadu_si512(b + i * kPanelColumns * 4 + 64);
      const int64_t at = i < 4 ? i * 4 : kBack + (i - 4) * 4;
      for (int row = 0; row < kRows; ++row) {
        const __m512i four = _mm512_set1_epi32(four_codes(codes + row * a.groups * kGroup + at));
        products[row][0] = _mm512_dpbusd_epi32(products[row][0], left, four);
        products[row][1] = _mm512_dpbusd_epi32(products[row][1], right, four);
      }
    }
    const __m512 left = _mm512_loadu_ps(panel.scales + part * kPanelColumns);
    const __m512 right = _mm512_loadu_ps(panel.scales + part * kPanelColumns + 16);
    for (int row = 0; row < kRows; ++row) {
      const __m512 scale = _mm512_set1_ps(a.scales[row * a.groups * kParts + part]);
      sums[row][0] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(products[row][0]), scale), left,
                                     sums[row][0]);
      sums[row][1] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(products[row][1]), scale), right,
                                     sums[row][1]);
    }
  }
  const auto left = static_cast<__mmask16>(columns), right = static_cast<__mmask16>(columns >> 16);
  for (int row = 0; row < kRows; ++row, y += p.columns) {
    if (bias) {
      sums[row][0] = _mm512_add_ps(sums[row][0], _mm512_maskz_loadu_ps(left, bias));
      sums[row][1] = _mm512_add_ps(sums[row][1], _mm512_maskz_loadu_ps(right, bias + 16));
    }
    _mm512_mask_storeu_ps(y, left, sums[row][0]);
    _mm512_mask_storeu_ps(y + 16, right, sums[row][1]);
  }
}

using MultiplyTile = void (*)(const NBits&, const Panel&, const PanelTile&, float*, uint32_t,
                              const float*);

template <int kBits, bool kZeroPoints>
constexpr MultiplyTile kTiles[kTileRows] = {
    multiply_tile<kBits, kZeroPoints, 1>, multiply_tile<kBits, kZeroPoints, 2>,
    multiply_tile<kBits, kZeroPoints, 3>, multiply_tile<kBits, kZeroPoints, 4>,
    multiply_tile<kBits, kZeroPoints, 5>, multiply_tile<kBits, kZeroPoints, 6>,
};

const MultiplyTile* tiles_of(const NBits& p) {
  if (p.bits == 8) return p.zero_points ? kTiles<8, true> : kTiles<8, false>;
  return p.zero_points ? kTiles<4, true> : kTiles<4, false>;
}

void multiply_many(const NBits& p, const RoundedRows& rounded, const void* memory, int64_t first_column,
                   int64_t first, int64_t end) {
  const Panel panel = panel_at(p, const_cast<void*>(memory));
  const int64_t groups = groups_of(p), there = p.columns - first_column;
  const uint32_t columns = there < kPanelColumns ? (1u << there) - 1 : ~0u;
  const float* bias = p.bias ? p.bias + first_column : nullptr;
  for (int64_t row = first; row < end; row += kTileRows) {
    const int64_t rows = end - row < kTileRows ? end - row : kTileRows;
    const PanelTile a{rounded.codes + row * groups * kGroup, rounded.scales + row * groups * kParts,
                      rounded.part_sums + row * groups * kParts, groups};
    tiles_of(p)[rows - 1](p, panel, a, p.y + row * p.columns + first_column, columns, bias);
  }
}
