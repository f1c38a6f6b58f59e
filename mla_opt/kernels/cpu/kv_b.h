// W_UK and W_UV as a model stores them: where a number of them is, and what it is.
#pragma once

#include <cstddef>
#include <cstdint>

#include "element.h"
#include "multi_head.h"

namespace mla_opt {

using KvB = mla_opt_kv_b;

// Rows first_row .. first_row + rows of kv_b: W_UK [N, C] of a head, its W_UV^T [V, C], or both. The
// first key_rows are of W_UK.
struct Matrix {
  const KvB* kv_b;
  int64_t first_row, rows, columns, key_rows;
};

// Fills failure and returns false for what cannot be. Reads nothing that a pointer leads to.
bool check_kv_b(const KvB& kv_b, int32_t query_type, mla_opt_failure& failure);

// Scales of a row; 1 where there are none.
inline int64_t blocks_of_row(const KvB& kv_b, int64_t columns) {
  return kv_b.block_size ? (columns + kv_b.block_size - 1) / kv_b.block_size : 1;
}

inline int64_t bytes_of_row(const KvB& kv_b, int64_t columns) {
  if (kv_b.bits) return blocks_of_row(kv_b, columns) * kv_b.block_size * kv_b.bits / 8;
  return columns * static_cast<int64_t>(element_size(kv_b.type));
}

inline const uint8_t* row_of(const Matrix& m, int64_t row) {
  return static_cast<const uint8_t*>(m.kv_b->codes) +
         (m.first_row + row) * bytes_of_row(*m.kv_b, m.columns);
}

inline float number_in(const void* from, int32_t type, int64_t at) {
  if (type == MLA_OPT_FLOAT32) return static_cast<const float*>(from)[at];
  if (type == MLA_OPT_FLOAT16) return to_float(static_cast<const Half*>(from)[at]);
  return to_float(static_cast<const BFloat16*>(from)[at]);
}

// Scale and zero point of block `block` of a row of the matrix.
float scale_of(const Matrix& matrix, int64_t row, int64_t block);
float zero_point_of(const Matrix& matrix, int64_t row, int64_t block);

// What the columns of a row are multiplied with; null: nothing.
inline const float* factors_of(const Matrix& m, int64_t row) {
  return m.kv_b->factors ? m.kv_b->factors + (row < m.key_rows ? 0 : m.columns) : nullptr;
}

// Whether all rows of the matrix have the same factors.
inline bool shares_factors(const Matrix& m) {
  return !m.kv_b->factors || m.key_rows <= 0 || m.key_rows >= m.rows;
}

// Whether some zero point is not 0.
inline bool has_zero_points(const KvB& kv_b) { return kv_b.bits || kv_b.zero_points; }

// Number `column` of a row, one at a time: for what is not to be fast, or does not fill vectors.
double number_at(const Matrix& matrix, int64_t row, int64_t column);

}  // namespace mla_opt
