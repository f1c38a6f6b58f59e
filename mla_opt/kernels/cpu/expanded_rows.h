// Latent rows as the products of the expanded form take them.
#pragma once

#include "heads.h"
#include "problem.h"

namespace mla_opt {

// c_kv of rows first .. first + count of a segment, where it lies if it can be read there; else in
// `room`, which has count * C numbers.
FloatRows float_rows(const Problem& problem, const Segment& rows, int64_t first, int64_t count,
                     float* room);

// The same as bfloat16 numbers, of rows that are such or quantized. `floats` has room for a row.
BFloat16Rows bfloat16_rows(const Problem& problem, const Segment& rows, int64_t first, int64_t count,
                           BFloat16* room, float* floats);

// k_pe of a row of a segment.
void read_k_pe(const Problem& problem, const Segment& rows, int64_t row, float* to);

}  // namespace mla_opt
