// bfloat16 rows, and what multiplies them: pairs of two neighbours, 32 bits. Included by the tiers
// that have instructions for those.
//
// Two neighbouring dims of a row are a pair as they lie in memory. For the weighted sum two
// neighbouring rows are the pair: they are interleaved once for all query rows, a strip of columns at a
// time, which never leaves the first-level cache. Queries and probabilities are rounded to bfloat16, and
// so are quantized rows, a block of keys at a time.

constexpr int kBlockKeys = 128;
// With one vector of query rows half of that is 13 % faster (tiles, 8k and 32k keys): a block then stays
// nearer until its values are added up. With 128 query rows it is 15 % slower: outputs are read and
// written for each block.
inline int64_t block_keys(int64_t rows) { return rows <= LANES ? kBlockKeys / 2 : kBlockKeys; }
constexpr int kPairColumns = 32;    // columns that one load interleaves
constexpr int kStripVectors = 4;    // vectors of columns in a strip; the last may have 2

using Pairs = __m512i;              // 16 pairs of bfloat16

inline Pairs load_pairs(const uint32_t* from) { return _mm512_loadu_si512(from); }

// Whether the rows are what this tier is for; others go to the tier below.
bool fits(const Problem& p) {
  const int32_t rows = p.cache ? p.cache_type : p.type;
  return (rows == MLA_OPT_BFLOAT16 || is_quantized(rows)) && p.kv_lora_rank % kPairColumns == 0 &&
         rank_in_front(p) % kPairColumns == 0 && front_width(p) % 2 == 0 && back_width(p) % 2 == 0;
}

// ---- the query, packed --------------------------------------------------------------------------

size_t query_bytes(const Problem& p, int64_t rows) {
  return static_cast<size_t>(padded(rows) * row_width(p)) * sizeof(BFloat16);
}

inline int group_vectors(int64_t at, int64_t count) { return count - at < 2 ? 1 : 2; }

template <class T>
void pack_rows(const Problem& p, const Tile& tile, BFloat16* packed) {
  const int64_t width = row_width(p), vectors = padded(tile.count) / LANES;
  for (int64_t at = 0; at < vectors;) {
    const int group = group_vectors(at, vectors);
    const int64_t lanes = group * LANES;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t row = at * LANES + lane;
      const T* from = static_cast<const T*>(p.query) +
                      query_offset(p, tile.sequence, tile.first + least(row, tile.count - 1), width);
      for (int64_t d = 0; d < width; ++d)
        from_float(row < tile.count ? to_float(from[d]) : 0.0f,
                   packed[(d / 2 * lanes + lane) * 2 + d % 2]);
    }
    packed += lanes * width;
    at += group;
  }
}

void pack_query(const Problem& p, const Tile& tile, void* packed) {
  auto* to = static_cast<BFloat16*>(packed);
  if (p.type == MLA_OPT_FLOAT32) return pack_rows<float>(p, tile, to);
  return pack_rows<BFloat16>(p, tile, to);
}

// ---- latent rows --------------------------------------------------------------------------------

struct Conversion;

struct Block {
  const BFloat16* front;
  const BFloat16* back;
  ptrdiff_t front_stride, back_stride;
  int64_t front_width;
  int64_t first;
  int keys;
  Conversion* ahead = nullptr;  // of the rows of the next block, to be done meanwhile
};

// Room for an interleaved strip; behind it for a block of c_kv, or two of half as many keys; and for
// what is known of the second one.
constexpr int64_t kStripFloats = kBlockKeys / 2 * kStripVectors * LANES;
constexpr int64_t kConversionFloats = 16;

// Numbers between rows of it: a line, so that a column of them lies in all sets of the first-level cache.
constexpr int64_t kBetweenRows = 32;

int64_t block_floats(const Problem& p, int64_t /*rows*/) {
  const int64_t row = p.kv_lora_rank + kBetweenRows;
  return kStripFloats +
         (is_quantized(p.cache_type) ? kConversionFloats + kBlockKeys * row / 2 : 0);
}

// Vectors of floats rounded to bfloat16.
struct StoreBFloat16 {
  BFloat16* to;
  inline __attribute__((always_inline)) void operator()(int64_t column, Vector numbers) const {
    const auto rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(numbers));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + column), reinterpret_cast<__m256i>(rounded));
  }
  inline __attribute__((always_inline)) void operator()(int64_t column, Vector a, Vector b) const {
    const auto rounded =
        _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(a));
    _mm512_storeu_si512(to + column, reinterpret_cast<__m512i>(rounded));
  }
};

// c_kv of a quantized row as bfloat16 numbers.
template <class Codes, class Words>
void dequantize_row_to(const uint8_t* codes, const BFloat16* scales, int64_t rank, BFloat16* to) {
#if MLA_OPT_HAS_FP16
  if (has_float16_vectors() && dequantize_by_words<Words>(codes, scales, rank, to)) return;
#endif
  dequantize<Codes>(codes, scales, rank, StoreBFloat16{to});
}

// Quantized rows of a block that become bfloat16 ones.
struct Conversion {
  const Segment* rows;
  int64_t first, rank;
  int keys, done;
  BFloat16* to;

  int64_t stride() const { return rank + kBetweenRows; }

  void some(int count) {
    const bool is_int8 = rows->type == MLA_OPT_INT8;
    for (const int end = keys - done < count ? keys : done + count; done < end; ++done) {
      const uint8_t* codes = codes_of(*rows, first + done);
      const BFloat16* scales = scales_of(*rows, first + done);
      BFloat16* row = to + done * stride();
      is_int8 ? dequantize_row_to<Int8Codes, Int8Words>(codes, scales, rank, row)
              : dequantize_row_to<E4M3Codes, E4M3Words>(codes, scales, rank, row);
    }
  }
};

static_assert(sizeof(Conversion) <= kConversionFloats * sizeof(float), "there is room for it");

// Quantized rows as bfloat16 ones; k_pe is such already. Two blocks of half as many keys take turns in
// the buffer: the rows of the next one become ready while this one is multiplied.
Block dequantized(const Problem& p, const Segment& rows, int64_t first, int keys, const Next& next,
                  float* buffer) {
  const int64_t rank = p.kv_lora_rank;
  constexpr int kHalf = kBlockKeys / 2;
  auto& ahead = *reinterpret_cast<Conversion*>(buffer + kStripFloats);
  auto* start = reinterpret_cast<BFloat16*>(buffer + kStripFloats + kConversionFloats);
  Conversion now{&rows, first, rank, keys, 0, start};
  if (next.follows && ahead.first == first && ahead.keys == keys) now = ahead;
  now.some(keys);
  const bool fits = keys <= kHalf && next.keys <= kHalf;
  BFloat16* other = now.to == start ? start + kHalf * now.stride() : start;
  ahead = {&rows, first + keys, rank, fits ? next.keys : 0, 0, other};
  const auto* k_pe =
      reinterpret_cast<const BFloat16*>(rows.back) + (first - rows.first) * rows.back_stride;
  return {now.to, k_pe, now.stride(), rows.back_stride, rank, first, keys, &ahead};
}

Block block_of(const Problem& p, const Segment& rows, int64_t first, int keys, const Next& next,
               float* buffer) {
  if (is_quantized(rows.type)) return dequantized(p, rows, first, keys, next, buffer);
  const int64_t row = first - rows.first;
  return {reinterpret_cast<const BFloat16*>(rows.front) + row * rows.front_stride,
          reinterpret_cast<const BFloat16*>(rows.back) + row * rows.back_stride,
          rows.front_stride, rows.back_stride, front_width(p), first, keys};
}

// ---- the rows of a block, interleaved -------------------------------------------------------------

// `count` pairs of neighbouring rows, `wide` columns of each: [count, wide], zeros behind the last row.
// Within 32 columns the order is that of the unpack instructions; settle undoes it at the end.
void interleave_strip(const Block& block, int64_t column, int64_t wide, int count, uint32_t* pairs,
                      Ahead& ahead) {
  const auto row = [&](int key, int64_t at) {
    if (key >= block.keys) return _mm512_setzero_si512();
    const bool in_front = at < block.front_width;
    return _mm512_loadu_si512(in_front ? block.front + key * block.front_stride + at
                                       : block.back + key * block.back_stride + at - block.front_width);
  };
  for (int pair = 0; pair < count; ++pair)
    for (int64_t at = column; at < column + wide; at += kPairColumns) {
      ahead.fetch();
      const __m512i first = row(2 * pair, at), second = row(2 * pair + 1, at);
      _mm512_storeu_si512(pairs, _mm512_unpacklo_epi16(first, second));
      _mm512_storeu_si512(pairs + LANES, _mm512_unpackhi_epi16(first, second));
      pairs += kPairColumns;
    }
}

// Brings the columns into their order: unpacking takes four of each eight.
void settle(const Problem& p, float* output, int64_t rows) {
  for (float* at = output; at < output + rows * p.kv_lora_rank; at += kPairColumns) {
    const __m512 low = _mm512_loadu_ps(at), high = _mm512_loadu_ps(at + LANES);
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const __m512d a = _mm512_castps_pd(low), b = _mm512_castps_pd(high);
    _mm512_storeu_pd(at, _mm512_permutex2var_pd(a, first, b));
    _mm512_storeu_pd(at + LANES, _mm512_permutex2var_pd(a, second, b));
  }
}
