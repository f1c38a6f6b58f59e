#include "expanded_rows.h"

#include <algorithm>

#include "multi_head_call.h"

namespace mla_opt {
namespace {

// `count` numbers of a row from `column` on, as floats; of rows that are not quantized.
void read_columns(const Problem& p, const Segment& rows, int64_t row, int64_t column, int64_t count,
                  float* to) {
  const int64_t front = std::clamp<int64_t>(front_width(p) - column, 0, count);
  if (front) read_floats(rows.front, rows.type, row * rows.front_stride + column, front, to);
  if (front == count) return;
  read_floats(rows.back, rows.type, row * rows.back_stride + column + front - front_width(p),
              count - front, to + front);
}

void read_c_kv(const Problem& p, const Segment& rows, int64_t row, float* to) {
  const int64_t key = rows.first + row;
  if (is_quantized(rows.type))
    dequantize_row(codes_of(rows, key), rows.type, scales_of(rows, key), p.kv_lora_rank, to);
  else
    read_columns(p, rows, row, 0, p.kv_lora_rank, to);
}

// The rows where they lie, as numbers of a type that they have; none where c_kv is not in one piece.
template <class Rows, class T>
bool in_place(const Problem& p, const Segment& rows, int32_t type, int64_t first, int64_t count,
              Rows& found) {
  if (rows.type != type || rank_in_front(p) != p.kv_lora_rank) return false;
  found = {reinterpret_cast<const T*>(rows.front) + first * rows.front_stride, rows.front_stride, count};
  return true;
}

}  // namespace

FloatRows float_rows(const Problem& p, const Segment& rows, int64_t first, int64_t count, float* room) {
  FloatRows found;
  if (in_place<FloatRows, float>(p, rows, MLA_OPT_FLOAT32, first, count, found)) return found;
  for (int64_t i = 0; i < count; ++i) read_c_kv(p, rows, first + i, room + i * p.kv_lora_rank);
  return {room, p.kv_lora_rank, count};
}

BFloat16Rows bfloat16_rows(const Problem& p, const Segment& rows, int64_t first, int64_t count,
                           BFloat16* room, float* floats) {
  BFloat16Rows found;
  if (in_place<BFloat16Rows, BFloat16>(p, rows, MLA_OPT_BFLOAT16, first, count, found)) return found;
  for (int64_t i = 0; i < count; ++i) {
    read_c_kv(p, rows, first + i, floats);
    write_floats(floats, p.kv_lora_rank, room, MLA_OPT_BFLOAT16, i * p.kv_lora_rank);
  }
  return {room, p.kv_lora_rank, count};
}

void read_k_pe(const Problem& p, const Segment& rows, int64_t row, float* to) {
  if (is_quantized(rows.type))
    read_floats(rows.back, type_beside(rows.type), row * rows.back_stride, p.rope_dim, to);
  else
    read_columns(p, rows, row, p.kv_lora_rank, p.rope_dim, to);
}

}  // namespace mla_opt
