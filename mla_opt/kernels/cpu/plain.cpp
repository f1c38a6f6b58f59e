#include "plain.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "copy.h"

namespace mla_opt {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

double dot(const double* a, const double* b, int64_t count) {
  double sum = 0.0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

double bias_of(const Problem& p, int64_t sequence, int64_t m, int64_t key) {
  if (!p.bias) return 0.0;
  const int64_t at = sequence * p.bias_strides[0] + m % p.heads * p.bias_strides[1] +
                     m / p.heads * p.bias_strides[2] + key * p.bias_strides[3];
  if (p.bias_type == MLA_OPT_BOOL)
    return static_cast<const uint8_t*>(p.bias)[at] ? 0.0 : kMinusInfinity;
  return static_cast<const double*>(p.bias)[at];
}

const double* row_of(const char* start, ptrdiff_t stride, int64_t row) {
  return reinterpret_cast<const double*>(start) + row * stride;
}

// Scores of the keys that the row may see; returns how many.
int64_t score(const Problem& p, int64_t sequence, int64_t m, const Segments& all, double* scores) {
  const double* query =
      static_cast<const double*>(p.query) + query_offset(p, sequence, m, row_width(p));
  const int64_t seen = last_key(p, valid_len(p, sequence), m) + 1;
  for (int i = 0; i < all.count; ++i) {
    const Segment& rows = all.segment[i];
    for (int64_t key = rows.first; key < std::min(seen, rows.first + rows.count); ++key) {
      const int64_t row = key - rows.first;
      const int64_t front = front_width(p), back = back_width(p);
      double product = dot(query, row_of(rows.front, rows.front_stride, row), front);
      if (back) product += dot(query + front, row_of(rows.back, rows.back_stride, row), back);
      scores[key] = p.scale * product + bias_of(p, sequence, m, key);
    }
  }
  return seen;
}

void add_values(const Problem& p, const Segments& all, const double* weights, int64_t seen,
                double* output) {
  for (int i = 0; i < all.count; ++i) {
    const Segment& rows = all.segment[i];
    for (int64_t key = rows.first; key < std::min(seen, rows.first + rows.count); ++key) {
      const int64_t in_front = rank_in_front(p);
      const double* front = row_of(rows.front, rows.front_stride, key - rows.first);
      const double* back = row_of(rows.back, rows.back_stride, key - rows.first);
      for (int64_t c = 0; c < in_front; ++c) output[c] += weights[key] * front[c];
      for (int64_t c = in_front; c < p.kv_lora_rank; ++c)
        output[c] += weights[key] * back[c - in_front];
    }
  }
}

}  // namespace

bool attend_plain(const Problem& p, int64_t sequence, int64_t m, Scratch& scratch) {
  const int64_t valid = valid_len(p, sequence);
  auto* scores = reinterpret_cast<double*>(
      scratch.reserve(static_cast<size_t>(std::max<int64_t>(1, valid)) * sizeof(double)));
  if (!scores) return false;
  const Segments all = segments(p, sequence);
  const int64_t seen = score(p, sequence, m, all, scores);
  const double sink =
      p.sink ? static_cast<const double*>(p.sink)[m % p.heads] : kMinusInfinity;
  double highest = sink;
  for (int64_t key = 0; key < seen; ++key) highest = std::max(highest, scores[key]);
  const double base = highest == kMinusInfinity ? 0.0 : highest;
  double total = std::exp(sink - base);
  for (int64_t key = 0; key < seen; ++key) total += scores[key] = std::exp(scores[key] - base);
  double* output =
      static_cast<double*>(p.output) + query_offset(p, sequence, m, p.kv_lora_rank);
  std::fill_n(output, p.kv_lora_rank, 0.0);
  if (total == 0.0) return true;
  add_values(p, all, scores, seen, output);
  for (int64_t c = 0; c < p.kv_lora_rank; ++c) output[c] /= total;
  return true;
}

}  // namespace mla_opt
