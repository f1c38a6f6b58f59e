// The product of matmul_nbits.h in its parts, compiled for an instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matmul_nbits.h"

namespace mla_opt {

using NBits = mla_opt_matmul_nbits;

// A row of `a` is rounded to int8, with a scale for each part of so many numbers.
constexpr int64_t kPart = 32;
// Parts are computed with in groups, and rows are padded to those with zeros.
constexpr int64_t kGroup = 128;

inline int64_t blocks_of(const NBits& p) { return (p.inner + p.block_size - 1) / p.block_size; }
inline int64_t parts_of(const NBits& p) { return blocks_of(p) * (p.block_size / kPart); }
inline int64_t groups_of(const NBits& p) { return (parts_of(p) * kPart + kGroup - 1) / kGroup; }
inline int64_t bytes_of_row(const NBits& p) { return blocks_of(p) * p.block_size * p.bits / 8; }
inline int64_t zero_bytes_of_row(const NBits& p) { return (blocks_of(p) * p.bits + 7) / 8; }

// Rounded rows of `a`, each in the order in which the tier multiplies it.
struct RoundedRows {
  int8_t* codes;       // [M, groups, kGroup]
  float* scales;       // [M, groups, kGroup / kPart]
  int32_t* part_sums;  // [M, groups, kGroup / kPart], of the codes; times what `start` is
  int32_t* lane_sums;  // [M, groups, kLaneSums], likewise; for few rows
};

// Sums of lanes that a group of codes may have.
constexpr int64_t kLaneSums = 32;

struct NBitsProducts {
  bool (*runs_here)();
  // Rounds a row of `a`.
  void (*round)(const NBits&, int64_t row, const RoundedRows&);
  // All rows with columns first .. end of y: rows of b are read as they are stored.
  void (*multiply_few)(const NBits&, const RoundedRows&, int64_t first, int64_t end);

  // Columns of a panel, whose rows of b are put in the order of vectors first: for many rows.
  int64_t panel_columns;
  size_t (*panel_bytes)(const NBits&);
  void (*pack)(const NBits&, int64_t first_column, void* panel);
  // Rows first .. end of `a` with the columns of a panel.
  void (*multiply_many)(const NBits&, const RoundedRows&, const void* panel, int64_t first_column,
                        int64_t first, int64_t end);
};

}  // namespace mla_opt
