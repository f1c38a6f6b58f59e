// Rows of a rounded to int8: a part of 32 numbers has the scale max |a| / 127. Of a group of 128,
// those that 64 bytes of b are multiplied with stand together: with 4 bits, whose bytes hold two
// neighbours, first all even ones, then all odd ones; with 8 bits, as they come.

// What is smaller everywhere in a part is taken for 0: its scale would have no reciprocal.
constexpr float kNothing = 1e-30f;

struct Part {
  __m512 low, high;
};

Part read_part(const float* from, int64_t count) {
  if (count >= kPart) return {_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)};
  const uint32_t mask = count <= 0 ? 0 : (1u << count) - 1;
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from),
          _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), from + 16)};
}

// The scale; NaN where a number is none or infinite, which the products are then, too.
float scale_of_part(const Part& part) {
  const __m512 low = _mm512_abs_ps(part.low), high = _mm512_abs_ps(part.high);
  const __m512 infinity = _mm512_set1_ps(__builtin_inff());
  const __mmask16 finite = _mm512_cmp_ps_mask(low, infinity, _CMP_LT_OQ) &
                           _mm512_cmp_ps_mask(high, infinity, _CMP_LT_OQ);
  if (finite != 0xffff) return __builtin_nanf("");
  const float most = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
  return most < kNothing ? 0.0f : most / 127.0f;
}

__m256i codes_of_part(const Part& part, float scale) {
  if (!(scale > 0.0f)) return _mm256_setzero_si256();
  const __m512 by = _mm512_set1_ps(1.0f / scale);
  const __m128i low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(part.low, by)));
  const __m128i high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(part.high, by)));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

void store_part(int32_t bits, __m256i codes, int8_t* group, int64_t part) {
  if (bits == 8) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(group + part * kPart), codes);
    return;
  }
  auto* even = reinterpret_cast<__m128i*>(group + part * 16);
  _mm_storeu_si128(even, _mm256_cvtepi16_epi8(codes));
  _mm_storeu_si128(even + kGroup / 2 / 16, _mm256_cvtepi16_epi8(_mm256_srli_epi16(codes, 8)));
}

// Sums of the codes by fours, times `start`: of 64 codes, or of those that two products add up.
void sum_lanes(int32_t bits, const int8_t* group, int32_t start, int32_t* lanes) {
  const __m512i ones = _mm512_set1_epi8(1), by = _mm512_set1_epi32(start);
  const __m512i nothing = _mm512_setzero_si512();
  const __m512i front = _mm512_dpbusd_epi32(nothing, ones, _mm512_loadu_si512(group));
  const __m512i back =
      _mm512_dpbusd_epi32(bits == 4 ? front : nothing, ones, _mm512_loadu_si512(group + 64));
  _mm512_storeu_si512(lanes, _mm512_mullo_epi32(bits == 4 ? back : front, by));
  _mm512_storeu_si512(lanes + 16, _mm512_mullo_epi32(back, by));
}

int32_t sum_of(__m256i codes) {
  const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), codes);
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

void round_row(const NBits& p, int64_t row, const RoundedRows& rounded) {
  const int64_t groups = groups_of(p);
  const int32_t start = p.zero_points ? -1 : -(1 << (p.bits - 1));
  const float* from = p.a + row * p.inner;
  int8_t* codes = rounded.codes + row * groups * kGroup;
  for (int64_t part = 0; part < groups * kParts; ++part) {
    const int64_t left = p.inner - part * kPart;
    const Part numbers = read_part(left > 0 ? from + part * kPart : from, left);
    const float scale = scale_of_part(numbers);
    const __m256i rounds = codes_of_part(numbers, scale);
    store_part(p.bits, rounds, codes + part / kParts * kGroup, part % kParts);
    rounded.scales[row * groups * kParts + part] = scale;
    rounded.part_sums[row * groups * kParts + part] = start * sum_of(rounds);
  }
  if (!rounded.lane_sums) return;
  int32_t* lanes = rounded.lane_sums + row * groups * kLaneSums;
  for (int64_t group = 0; group < groups; ++group)
    sum_lanes(p.bits, codes + group * kGroup, start, lanes + group * kLaneSums);
}
