#include "kv_b.h"

#include "refusal.h"

namespace mla_opt {
namespace {

bool is_float(int32_t type) {
  return type == MLA_OPT_FLOAT32 || type == MLA_OPT_FLOAT16 || type == MLA_OPT_BFLOAT16;
}

bool is_byte(int32_t type) {
  return type == MLA_OPT_INT8 || type == MLA_OPT_UINT8 || type == MLA_OPT_FLOAT8E4M3FN ||
         type == MLA_OPT_FLOAT8E5M2;
}

bool is_short(int32_t type) { return type == MLA_OPT_FLOAT16 || type == MLA_OPT_BFLOAT16; }

bool check_plain(const KvB& w, int32_t query_type, mla_opt_failure& failure) {
  if (w.zero_points) return refuse(failure, "kv_b_zero_points is given without kv_b_scales");
  if (w.block_size) return refuse(failure, "kv_b_scales is missing, but block_size is not 0");
  if (is_float(w.type) || (w.type == MLA_OPT_FLOAT64 && query_type == MLA_OPT_FLOAT64)) return true;
  return refuse(failure, "kv_b without kv_b_scales must be float32, float16 or bfloat16, or float64 "
                         "as the query");
}

bool check_scaled(const KvB& w, mla_opt_failure& failure) {
  if (w.block_size < 1 || w.block_rows < 1)
    return refuse(failure, "block_size and block_rows must be at least 1 with kv_b_scales");
  if (!is_float(w.scales_type))
    return refuse(failure, "kv_b_scales must be float32, float16 or bfloat16");
  if (!w.bits && !is_byte(w.type) && !is_short(w.type))
    return refuse(failure, "kv_b with kv_b_scales must be int8, uint8, float8e4m3fn, float8e5m2, "
                           "float16 or bfloat16");
  if (!w.bits && w.zero_points && w.zero_points_type != w.type)
    return refuse(failure, "kv_b_zero_points must have the type of kv_b");
  return true;
}

bool check_packed(const KvB& w, mla_opt_failure& failure) {
  if (w.bits != 2 && w.bits != 4 && w.bits != 8) return refuse(failure, "bits must be 0, 2, 4 or 8");
  if (!w.scales) return refuse(failure, "kv_b_scales is missing, but kv_b is packed");
  if (w.type != MLA_OPT_UINT8) return refuse(failure, "packed kv_b must be uint8");
  if (w.block_rows != 1) return refuse(failure, "block_rows must be 1 where kv_b is packed");
  if (w.block_size * w.bits % 8) return refuse(failure, "a block of kv_b fills no bytes");
  if (w.zero_points && w.zero_points_type != MLA_OPT_UINT8 && w.zero_points_type != w.scales_type)
    return refuse(failure, "kv_b_zero_points must be uint8 or have the type of kv_b_scales");
  return true;
}

double byte_number(int32_t type, uint8_t bits) {
  if (type == MLA_OPT_INT8) return static_cast<int8_t>(bits);
  if (type == MLA_OPT_UINT8) return bits;
  return static_cast<double>(type == MLA_OPT_FLOAT8E4M3FN ? to_float(Float8E4M3FN{bits})
                                                          : to_float(Float8E5M2{bits}));
}

// Code of an element of its own.
double code_at(const KvB& w, const uint8_t* from, int64_t at) {
  if (is_short(w.type)) return static_cast<double>(number_in(from, w.type, at));
  return byte_number(w.type, from[at]);
}

uint8_t packed_at(const uint8_t* row, int bits, int64_t at) {
  const int64_t bit = at * bits;
  return static_cast<uint8_t>(row[bit / 8] >> bit % 8 & ((1 << bits) - 1));
}

int64_t scale_index(const Matrix& m, int64_t row, int64_t block) {
  return (m.first_row + row) / m.kv_b->block_rows * blocks_of_row(*m.kv_b, m.columns) + block;
}

}  // namespace

bool check_kv_b(const KvB& w, int32_t query_type, mla_opt_failure& failure) {
  if (w.bits && !check_packed(w, failure)) return false;
  if (!w.codes) return refuse(failure, "kv_b is missing");
  return w.scales ? check_scaled(w, failure) : check_plain(w, query_type, failure);
}

float scale_of(const Matrix& m, int64_t row, int64_t block) {
  if (!m.kv_b->scales) return 1.0f;
  return number_in(m.kv_b->scales, m.kv_b->scales_type, scale_index(m, row, block));
}

float zero_point_of(const Matrix& m, int64_t row, int64_t block) {
  const KvB& w = *m.kv_b;
  if (!w.zero_points) return w.bits ? static_cast<float>(1 << (w.bits - 1)) : 0.0f;
  const auto* bytes = static_cast<const uint8_t*>(w.zero_points);
  if (!w.bits) return static_cast<float>(code_at(w, bytes, scale_index(m, row, block)));
  if (w.zero_points_type != MLA_OPT_UINT8)
    return number_in(w.zero_points, w.scales_type, scale_index(m, row, block));
  const int64_t stride = (blocks_of_row(w, m.columns) * w.bits + 7) / 8;
  return packed_at(bytes + (m.first_row + row) * stride, w.bits, block);
}

namespace {

// Number `column` of a row as it is stored.
double stored_at(const Matrix& m, int64_t row, int64_t column) {
  const KvB& w = *m.kv_b;
  const uint8_t* from = row_of(m, row);
  if (!w.scales) {
    if (w.type == MLA_OPT_FLOAT64) return reinterpret_cast<const double*>(from)[column];
    return static_cast<double>(number_in(from, w.type, column));
  }
  const double code = w.bits ? packed_at(from, w.bits, column) : code_at(w, from, column);
  const int64_t block = column / w.block_size;
  return (code - static_cast<double>(zero_point_of(m, row, block))) *
         static_cast<double>(scale_of(m, row, block));
}

}  // namespace

double number_at(const Matrix& m, int64_t row, int64_t column) {
  const float* factors = factors_of(m, row);
  const double number = stored_at(m, row, column);
  return factors ? number * static_cast<double>(factors[column]) : number;
}

}  // namespace mla_opt
