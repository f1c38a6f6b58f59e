// The products of a head with its weights, compiled for an instruction set: float32 sums, exact for
// the bits that are stored.
#pragma once

#include <cstdint>

#include "kv_b.h"

namespace mla_opt {

class Scratch;

// Memory of the thread that computes: for rows, and for what is unpacked.
struct HeadScratch {
  Scratch& rows;
  Scratch& packed;
};

// Rows of numbers, `stride` floats apart.
struct FloatRows {
  const float* at;
  int64_t stride, count;
};

struct HeadProducts {
  // What there has to be room for in results: full groups of vectors in a row, and of rows.
  int64_t (*padded_columns)(int64_t columns);
  int64_t (*padded_rows)(int64_t rows);

  // out[i, c] = sum over r of a[i, r] W[r, c]: the matrix stands as it is stored.
  bool (*sum_rows)(const Matrix& matrix, const FloatRows& a, float* out, int64_t stride,
                   const HeadScratch&);
  // out[i, r] = sum over c of a[i, c] W[r, c]: the matrix is turned over.
  bool (*dot_rows)(const Matrix& matrix, const FloatRows& a, float* out, int64_t stride,
                   const HeadScratch&);

  // dot_rows in two steps, for matrices that many tasks multiply with: their numbers in vectors of
  // rows, and products with those.
  int64_t (*packed_floats)(const Matrix& matrix);
  bool (*pack)(const Matrix& matrix, float* packed, const HeadScratch&);
  bool (*multiply)(const Matrix& matrix, const float* packed, const FloatRows& a, float* out,
                   int64_t stride, Scratch&);

  // The numbers of the matrix, row by row.
  bool (*unpack)(const Matrix& matrix, float* rows, Scratch&);
};

// Rows of bfloat16 numbers, `stride` of them apart.
struct BFloat16Rows {
  const BFloat16* at;
  int64_t stride, count;
};

// Products of bfloat16 rows with a head's matrix, whose numbers are rounded to bfloat16 as well: for
// keys and values that become such. Sums are float32.
struct BFloat16Products {
  // Whether keys and values of these widths, made of rows of `rank` numbers, are what the tier takes.
  bool (*fits)(int64_t key, int64_t value, int64_t rank);
  int64_t (*packed_floats)(const Matrix& matrix);
  bool (*pack)(const Matrix& matrix, float* packed, const HeadScratch&);
  // out[i, r] = sum over c of a[i, c] W[r, c]; room as HeadProducts says.
  void (*multiply)(const Matrix& matrix, const float* packed, const BFloat16Rows& a, float* out,
                   int64_t stride);
  void (*round)(const float* from, int64_t count, BFloat16* to);
};

}  // namespace mla_opt
