// What all products on the tiles of AMX need: 8 tiles of 16 rows of 64 bytes. Intrinsics take literal
// numbers of tiles only, and the compiler does not know that they read memory.

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;
constexpr int kTilePairs = 16;
constexpr int kTileDims = 2 * kTilePairs;

inline void written() { asm volatile("" ::: "memory"); }

// Rows of the sums and of what they are made of; columns are always full.
void configure(int rows) {
  struct {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_in_row[16] = {};
    uint8_t rows[16] = {};
  } tiles;
  for (int tile = 0; tile < 8; ++tile) {
    tiles.bytes_in_row[tile] = kTileBytes;
    tiles.rows[tile] = static_cast<uint8_t>(tile == 5 || tile == 7 ? kTileRows : rows);
  }
  written();
  _tile_loadconfig(&tiles);
}

// Rows become columns.
inline void turn_over(__m512i (&tile)[16]) {
  __m512i by_two[16], by_four[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    by_two[i] = _mm512_unpacklo_epi32(tile[i], tile[i + 1]);
    by_two[i + 1] = _mm512_unpackhi_epi32(tile[i], tile[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    by_four[i] = _mm512_unpacklo_epi64(by_two[i], by_two[i + 2]);
    by_four[i + 1] = _mm512_unpackhi_epi64(by_two[i], by_two[i + 2]);
    by_four[i + 2] = _mm512_unpacklo_epi64(by_two[i + 1], by_two[i + 3]);
    by_four[i + 3] = _mm512_unpackhi_epi64(by_two[i + 1], by_two[i + 3]);
  }
  // Quarter q of by_four[4 g + r] is column 4 q + r of rows 4 g to 4 g + 3.
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) {
    const __m512i a = _mm512_shuffle_i32x4(by_four[r], by_four[4 + r], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(by_four[8 + r], by_four[12 + r], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(by_four[r], by_four[4 + r], 0xdd);
    const __m512i d = _mm512_shuffle_i32x4(by_four[8 + r], by_four[12 + r], 0xdd);
    tile[r] = _mm512_shuffle_i32x4(a, b, 0x88);
    tile[8 + r] = _mm512_shuffle_i32x4(a, b, 0xdd);
    tile[4 + r] = _mm512_shuffle_i32x4(c, d, 0x88);
    tile[12 + r] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
}

// Most blocks raise no maximum, and then there is nothing to do.
void keep_output(const float* keep, int64_t rows, float* output, int64_t rank) {
  for (int64_t row = 0; row < rows; ++row) {
    if (keep[row] == 1.0f) continue;
    float* at = output + row * rank;
    for (int64_t column = 0; column < rank; column += LANES)
      store(at + column, load(at + column) * keep[row]);
  }
}
