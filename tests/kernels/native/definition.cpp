#include "definition.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../../../mla_opt/kernels/cpu/quantized_rows.h"

using namespace mla_opt;

namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

int64_t dim(const Case& c, Input which, int axis) {
  return c.has(which) ? c.input[which].dims[static_cast<size_t>(axis)] : 0;
}

int64_t past_rows(const Case& c, int64_t sequence) {
  return c.has(kPastLen) ? static_cast<int64_t>(value_at(c.input[kPastLen], sequence))
                         : dim(c, kCache, 2);
}

void copy_row(const Tensor& from, int64_t from_row, int64_t column, Tensor& to, int64_t to_row) {
  for (int64_t i = 0; i < to.dims[3]; ++i)
    set_value(to, to_row * to.dims[3] + i, value_at(from, from_row * from.dims[3] + column + i));
}

// The block of codes that begins at a column, and its scale: what the contract says, in its steps.
void quantize_block(const Tensor& latent, int64_t row, int64_t first, Tensor& codes, int64_t code_row,
                    Tensor& beside, int64_t scale_at) {
  const int64_t rank = codes.dims[3], end = std::min(first + kCodesPerScale, rank);
  const float most_code = codes.type == MLA_OPT_INT8 ? 127.0f : 448.0f;
  const auto number = [&](int64_t i) {
    return static_cast<float>(value_at(latent, row * latent.dims[3] + i));
  };
  float most = 0.0f;
  for (int64_t i = first; i < end; ++i) most = std::max(most, std::fabs(number(i)));
  set_value(beside, scale_at, static_cast<double>(most / most_code));
  const auto scale = static_cast<float>(value_at(beside, scale_at));
  for (int64_t i = first; i < end; ++i) {
    float code = scale == 0.0f ? 0.0f : number(i) / scale;
    code = std::max(-most_code, std::min(most_code, code));
    if (codes.type == MLA_OPT_INT8) code = std::nearbyint(code);
    set_value(codes, code_row * rank + i, static_cast<double>(code));
  }
}

// Both tensors of a cache of codes, with the new rows.
void update_codes(const Case& c, Expected& expected) {
  const Tensor &latent = c.input[kLatent], &old = c.input[kCache], &aside = c.input[kRopeCache];
  Tensor &codes = expected.new_cache, &beside = expected.new_rope_cache;
  const int64_t width = aside.dims[3], rank = old.dims[3], rope = latent.dims[3] - rank;
  const int64_t fresh = latent.dims[2];
  for (int64_t b = 0; b < latent.dims[0]; ++b)
    for (int64_t row = 0; row < fresh; ++row) {
      const int64_t to = b * codes.dims[2] + past_rows(c, b) + row, from = b * fresh + row;
      for (int64_t i = 0; i < width; ++i)
        set_value(beside, to * width + i,
                  i < rope ? value_at(latent, from * latent.dims[3] + rank + i) : 0.0);
      for (int64_t first = 0; first < rank; first += kCodesPerScale)
        quantize_block(latent, from, first, codes, to, beside,
                       to * width + rope + first / kCodesPerScale);
    }
}

// An old cache and the new rows, from `column` of them on; -1: with room for them.
Tensor updated(const Case& c, const Tensor& cache, int64_t column) {
  if (!cache.given() || !c.has(kLatent)) return {};
  const Tensor& latent = c.input[kLatent];
  const int64_t old = cache.dims[2], fresh = latent.dims[2];
  std::vector<int64_t> dims = cache.dims;
  if (!c.has(kPastLen)) dims[2] += fresh;
  Tensor result = make_tensor(cache.type, dims);
  for (int64_t b = 0; b < dims[0]; ++b) {
    for (int64_t row = 0; row < old; ++row)
      copy_row(cache, b * old + row, 0, result, b * dims[2] + row);
    for (int64_t row = 0; row < fresh && column >= 0; ++row)
      copy_row(latent, b * fresh + row, column, result, b * dims[2] + past_rows(c, b) + row);
  }
  return result;
}

// The latent rows of a sequence: from the new cache, the old one, or the new rows alone.
struct Rows {
  const Tensor &packed, &rope;
  int64_t rope_dim;

  double at(int64_t sequence, int64_t key, int64_t d) const {
    const int64_t first = packed.dims[3];
    const bool in_rope = rope.given() && d >= first;
    const Tensor& tensor = in_rope ? rope : packed;
    const int64_t row = sequence * tensor.dims[2] + key;
    const double number = value_at(tensor, row * tensor.dims[3] + (in_rope ? d - first : d));
    if (in_rope || !is_quantized(packed.type)) return number;
    return number * value_at(rope, row * rope.dims[3] + rope_dim + d / kCodesPerScale);
  }
};

double bias_of(const Case& c, const int64_t (&place)[4]) {
  if (!c.has(kBias)) return 0.0;
  const Tensor& bias = c.input[kBias];
  const size_t rank = bias.dims.size();
  int64_t at = 0;
  for (size_t axis = 0; axis < rank; ++axis)
    at = at * bias.dims[axis] + (bias.dims[axis] == 1 ? 0 : place[axis + 4 - rank]);
  const double value = value_at(bias, at);
  if (bias.type == MLA_OPT_BOOL) return value != 0.0 ? 0.0 : kNever;
  return value;
}

void attend(const Case& c, const Rows& rows, int64_t b, int64_t h, int64_t s, double* output) {
  const Tensor& query = c.input[kQuery];
  const int64_t heads = query.dims[1], length = query.dims[2], width = query.dims[3];
  const int64_t valid = past_rows(c, b) + dim(c, kLatent, 2);
  const int64_t seen = c.attributes.causal ? valid - length + s + 1 : valid;
  const double sink = c.has(kSink) ? value_at(c.input[kSink], h) : kNever;
  const int64_t start = ((b * heads + h) * length + s) * width;
  std::vector<double> scores;
  double highest = sink;
  for (int64_t key = 0; key < seen; ++key) {
    double product = 0.0;
    for (int64_t d = 0; d < width; ++d) product += value_at(query, start + d) * rows.at(b, key, d);
    scores.push_back(c.attributes.scale * product + bias_of(c, {b, h, s, key}));
    highest = std::max(highest, scores.back());
  }
  if (highest == kNever) return;
  double total = std::exp(sink - highest);
  for (double& score : scores) total += score = std::exp(score - highest);
  for (size_t key = 0; key < scores.size(); ++key)
    for (int64_t d = 0; d < c.attributes.kv_lora_rank; ++d)
      output[d] += scores[key] / total * rows.at(b, static_cast<int64_t>(key), d);
}

}  // namespace

Expected expected_of(const Case& c) {
  const Tensor& query = c.input[kQuery];
  const int64_t rank = c.attributes.kv_lora_rank;
  Expected expected;
  const bool quantized = c.has(kCache) && is_quantized(c.input[kCache].type);
  expected.new_cache = updated(c, c.input[kCache], quantized ? -1 : 0);
  expected.new_rope_cache = updated(c, c.input[kRopeCache], quantized ? -1 : dim(c, kCache, 3));
  if (quantized && c.has(kLatent)) update_codes(c, expected);
  const bool written = expected.new_cache.given();
  const Rows rows{written ? expected.new_cache : c.input[c.has(kCache) ? kCache : kLatent],
                  written ? expected.new_rope_cache : c.input[kRopeCache], query.dims[3] - rank};
  const int64_t positions = query.dims[0] * query.dims[1] * query.dims[2];
  expected.output.assign(static_cast<size_t>(positions * rank), 0.0);
  for (int64_t i = 0; i < positions; ++i)
    attend(c, rows, i / (query.dims[1] * query.dims[2]), i / query.dims[2] % query.dims[1],
           i % query.dims[2], expected.output.data() + i * rank);
  return expected;
}
