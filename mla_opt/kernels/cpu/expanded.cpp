// The expanded form: some heads at a time, their keys and values for all rows of a sequence, and
// attention to those by the kernel that attends to latent rows (Problem::scores_c_kv). Nothing above
// the diagonal or behind a sequence's last row is touched, and no score is kept.
//
//   weights of the heads, unpacked once for all sequences
//   rows [T, C]  times those of a head  ->  keys [T, N+R], values [T, V]
//   attention of the head's queries to them, in tiles and parts as the plan says
#include <algorithm>
#include <atomic>
#include <cstring>

#include "multi_head_call.h"

namespace mla_opt {
namespace {

thread_local Scratch weight_scratch, row_memory;  // of the calling thread
thread_local Scratch row_scratch, packed_scratch, task_scratch;

// What keys, values and unpacked weights of the heads that are worked on may take together.
constexpr int64_t kMostBytes = 64 << 20;
// Rows that one task expands: enough to read a head's weights for.
constexpr int64_t kRowsPerTask = 128;

struct Expanded {
  const Call& call;
  const HeadProducts& products;
  int64_t heads_at_once, longest;
  int64_t packed_floats;  // of a head
  float* packed;          // [heads_at_once, packed_floats]
  char* keys;             // [heads_at_once, T, N+R]
  char* values;           // [heads_at_once, T, V]
  int32_t* lengths;       // [heads_at_once], all those of the sequence
  int64_t first_head = 0, heads = 0, sequence = 0;
  std::atomic<bool> no_memory{false};
};

int64_t longest_of(const Problem& p) {
  int64_t length = 1;
  for (int64_t sequence = 0; sequence < p.batch; ++sequence)
    length = std::max(length, valid_len(p, sequence));
  return length;
}

void pack_head(Expanded& state, int64_t index) {
  const Matrix matrix = head_matrix(state.call, state.first_head + index);
  if (!state.products.pack(matrix, state.packed + index * state.packed_floats,
                           {row_scratch, packed_scratch}))
    state.no_memory = true;
}

// `count` numbers of a row from `column` on, as floats; of rows that are not quantized.
void read_columns(const Problem& p, const Segment& rows, int64_t row, int64_t column, int64_t count,
                  float* to) {
  const int64_t front = std::clamp<int64_t>(front_width(p) - column, 0, count);
  if (front) read_floats(rows.front, rows.type, row * rows.front_stride + column, front, to);
  if (front == count) return;
  read_floats(rows.back, rows.type, row * rows.back_stride + column + front - front_width(p),
              count - front, to + front);
}

// c_kv of rows first .. first + count of a segment, as floats.
FloatRows float_rows(const Problem& p, const Segment& rows, int64_t first, int64_t count, float* room) {
  if (rows.type == MLA_OPT_FLOAT32 && rank_in_front(p) == p.kv_lora_rank)
    return {reinterpret_cast<const float*>(rows.front) + first * rows.front_stride, rows.front_stride,
            count};
  for (int64_t i = 0; i < count; ++i) {
    float* to = room + i * p.kv_lora_rank;
    const int64_t key = rows.first + first + i;
    if (is_quantized(rows.type))
      dequantize_row(codes_of(rows, key), rows.type, scales_of(rows, key), p.kv_lora_rank, to);
    else
      read_columns(p, rows, first + i, 0, p.kv_lora_rank, to);
  }
  return {room, p.kv_lora_rank, count};
}

// Keys and values of some rows of a head: the products, and k_pe as it is.
void write_head(Expanded& state, int64_t index, const Segment& rows, int64_t first, int64_t count,
                const float* made, int64_t stride, float* room) {
  const Problem& p = state.call.attention;
  const int64_t nope = state.call.problem.nope_dim, value = state.call.problem.v_dim;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = index * state.longest + rows.first + first + i;
    const int64_t key = row * query_width(state.call);
    write_floats(made + i * stride, nope, state.keys, p.type, key);
    write_floats(made + i * stride + nope, value, state.values, p.type, row * value);
    if (!p.rope_dim) continue;
    if (is_quantized(rows.type))
      read_floats(rows.back, type_beside(rows.type), (first + i) * rows.back_stride, p.rope_dim, room);
    else
      read_columns(p, rows, first + i, p.kv_lora_rank, p.rope_dim, room);
    write_floats(room, p.rope_dim, state.keys, p.type, key + nope);
  }
}

void expand_segment(Expanded& state, const Segment& rows, int64_t first, int64_t count) {
  const Problem& p = state.call.attention;
  const int64_t made = state.call.problem.nope_dim + state.call.problem.v_dim;
  const int64_t stride = state.products.padded_columns(made);
  const int64_t made_floats = state.products.padded_rows(count) * stride;
  const int64_t floats = made_floats + count * p.kv_lora_rank + p.rope_dim + 16;
  auto* out = reinterpret_cast<float*>(
      task_scratch.reserve(static_cast<size_t>(floats) * sizeof(float)));
  if (!out) {
    state.no_memory = true;
    return;
  }
  float* widened = out + made_floats;
  float* k_pe = widened + count * p.kv_lora_rank;
  const FloatRows a = float_rows(p, rows, first, count, widened);
  for (int64_t index = 0; index < state.heads; ++index) {
    const Matrix matrix = head_matrix(state.call, state.first_head + index);
    if (!state.products.multiply(matrix, state.packed + index * state.packed_floats, a, out, stride,
                                 row_scratch)) {
      state.no_memory = true;
      return;
    }
    write_head(state, index, rows, first, count, out, stride, k_pe);
  }
}

void expand_rows(Expanded& state, int64_t task) {
  const Segments all = segments(state.call.attention, state.sequence);
  const int64_t begin = task * kRowsPerTask, end = begin + kRowsPerTask;
  for (int i = 0; i < all.count; ++i) {
    const Segment& rows = all.segment[i];
    const int64_t first = std::max(begin, rows.first);
    const int64_t last = std::min(end, rows.first + rows.count);
    if (first < last) expand_segment(state, rows, first - rows.first, last - first);
  }
}

// Attention of the heads at work as one problem: each head is a sequence of it.
Problem problem_of_heads(const Expanded& state) {
  const Problem& p = state.call.attention;
  const auto size = static_cast<int64_t>(element_size(p.type));
  const int64_t value = state.call.problem.v_dim, width = query_width(state.call);
  const int64_t row = (state.sequence * p.heads + state.first_head) * p.query_len;
  Problem inner = p;
  inner.cache_type = p.type;
  inner.even_cache = 0;
  inner.batch = state.heads;
  inner.heads = 1;
  inner.new_len = 0;
  inner.cache_len = state.longest;
  inner.kv_lora_rank = value;
  inner.rope_dim = width;
  inner.scores_c_kv = false;
  inner.query = static_cast<const char*>(p.query) + row * width * size;
  inner.output = static_cast<char*>(p.output) + row * value * size;
  inner.latent = nullptr;
  inner.cache = state.values;
  inner.rope_cache = state.keys;
  inner.new_cache = inner.new_rope_cache = nullptr;
  inner.past_len = state.lengths;
  if (p.bias) {
    const int64_t at = state.sequence * p.bias_strides[0] + state.first_head * p.bias_strides[1];
    inner.bias = static_cast<const char*>(p.bias) +
                 at * static_cast<int64_t>(element_size(p.bias_type));
    inner.bias_strides[0] = p.bias_strides[1];
    inner.bias_strides[1] = 0;
  }
  if (p.sink) inner.sink = static_cast<const char*>(p.sink) + state.first_head * size;
  inner.sink_stride = 1;
  return inner;
}

int attend_sequence(Expanded& state, mla_opt_failure& failure) {
  const int64_t valid = valid_len(state.call.attention, state.sequence);
  const int64_t tasks = (valid + kRowsPerTask - 1) / kRowsPerTask;
  void* error = on_host<Expanded, expand_rows>(state.call.host, state, tasks);
  if (verdict(error, state.no_memory, failure)) return 1;
  std::fill_n(state.lengths, state.heads, static_cast<int32_t>(valid));
  return run(problem_of_heads(state), state.call.host, failure);
}

int attend_heads(Expanded& state, mla_opt_failure& failure) {
  const Problem& p = state.call.attention;
  state.heads = std::min(state.heads_at_once, p.heads - state.first_head);
  void* error = on_host<Expanded, pack_head>(state.call.host, state, state.heads);
  if (verdict(error, state.no_memory, failure)) return 1;
  for (state.sequence = 0; state.sequence < p.batch; ++state.sequence)
    if (attend_sequence(state, failure)) return 1;
  return 0;
}

bool reserve(Expanded& state) {
  const Problem& p = state.call.attention;
  const auto size = static_cast<int64_t>(element_size(p.type));
  const int64_t keys = state.longest * query_width(state.call) * size;
  const int64_t values = state.longest * state.call.problem.v_dim * size;
  state.packed_floats = state.products.packed_floats(head_matrix(state.call, 0));
  const int64_t packed = state.packed_floats * static_cast<int64_t>(sizeof(float));
  state.heads_at_once = std::clamp<int64_t>(kMostBytes / (keys + values + packed), 1, p.heads);
  const auto all = [&](int64_t bytes) {
    return static_cast<size_t>((state.heads_at_once * bytes + 63) / 64 * 64);
  };
  char* weights = weight_scratch.reserve(all(packed) + all(4));
  char* rows = row_memory.reserve(all(keys) + all(values));
  if (!weights || !rows) return false;
  state.packed = reinterpret_cast<float*>(weights);
  state.lengths = reinterpret_cast<int32_t*>(weights + all(packed));
  state.keys = rows;
  state.values = rows + all(keys);
  return true;
}

}  // namespace

int run_expanded(const Call& call, mla_opt_failure& failure) {
  const Problem& p = call.attention;
  if (store_rows(p, call.host, failure)) return 1;
  if (p.batch == 0 || p.heads == 0 || p.query_len == 0) return 0;
  Expanded state{call, *current_tier().heads, 0, longest_of(p), 0, nullptr, nullptr, nullptr, nullptr};
  if (!reserve(state)) return verdict(nullptr, true, failure);
  for (; state.first_head < p.heads; state.first_head += state.heads_at_once)
    if (attend_heads(state, failure)) return 1;
  return 0;
}

}  // namespace mla_opt
