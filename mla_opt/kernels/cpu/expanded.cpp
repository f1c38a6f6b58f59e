// The expanded form: some heads at a time, their keys and values for all rows of a sequence, and
// attention to those by the kernel that attends to latent rows (Problem::scores_c_kv). Nothing above
// the diagonal or behind a sequence's last row is touched, and no score is kept.
//
//   weights of the heads, unpacked once for all sequences
//   rows [T, C]  times those of a head  ->  keys [T, N+R], values [T, V]
//   attention of the head's queries to them, in tiles and parts as the plan says
//
// Rows that are kept in bfloat16, or in 8 bits, become keys and values of bfloat16 where the processor
// multiplies such numbers: of weights that are rounded to them for it.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "expanded_rows.h"
#include "machine.h"
#include "multi_head_call.h"

namespace mla_opt {
namespace {

thread_local Scratch weight_scratch, row_memory;  // of the calling thread
thread_local Scratch row_scratch, packed_scratch, task_scratch;

// What keys, values and unpacked weights of the heads that are worked on may take together: heads
// enough to keep all processors busy.
constexpr int64_t kBytesPerProcessor = 8 << 20, kMostBytes = 64 << 20;
// Rows that one task expands: enough to read a head's weights for.
constexpr int64_t kRowsPerTask = 128;

struct Expanded {
  const Call& call;
  const HeadProducts& products;
  const BFloat16Products* narrow;  // null: products of float32
  int32_t type;                    // of keys and values
  int64_t heads_at_once, longest;
  int64_t packed_floats;  // of a head
  float* packed;          // [heads_at_once, packed_floats]
  char* keys;             // [heads_at_once, T, N+R]
  char* values;           // [heads_at_once, T, V]
  int32_t* lengths;       // [heads_at_once], all those of the sequence
  int64_t first_head = 0, heads = 0, sequence = 0;
  std::atomic<bool> no_memory{false};

  // Numbers into keys or values, from element `at` on.
  void write(const float* from, int64_t count, char* to, int64_t at) const {
    if (narrow) return narrow->round(from, count, reinterpret_cast<BFloat16*>(to) + at);
    write_floats(from, count, to, type, at);
  }
};

int64_t longest_of(const Problem& p) {
  int64_t length = 1;
  for (int64_t sequence = 0; sequence < p.batch; ++sequence)
    length = std::max(length, valid_len(p, sequence));
  return length;
}

void pack_head(Expanded& state, int64_t index) {
  const Matrix matrix = head_matrix(state.call, state.first_head + index);
  const auto pack = state.narrow ? state.narrow->pack : state.products.pack;
  if (!pack(matrix, state.packed + index * state.packed_floats, {row_scratch, packed_scratch}))
    state.no_memory = true;
}

// Keys and values of some rows of a head: the products, and k_pe as it is.
void write_head(Expanded& state, int64_t index, const Segment& rows, int64_t first, int64_t count,
                const float* made, int64_t stride, float* k_pe) {
  const Problem& p = state.call.attention;
  const int64_t nope = state.call.problem.nope_dim, value = state.call.problem.v_dim;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = index * state.longest + rows.first + first + i;
    const int64_t key = row * query_width(state.call);
    state.write(made + i * stride, nope, state.keys, key);
    state.write(made + i * stride + nope, value, state.values, row * value);
    if (!p.rope_dim) continue;
    read_k_pe(p, rows, first + i, k_pe);
    state.write(k_pe, p.rope_dim, state.keys, key + nope);
  }
}

// What a task keeps beside the products that it makes.
struct Room {
  float* made;  // [rows, stride]
  int64_t stride;
  float* rows;  // [rows, C], if they cannot be read where they lie
  float* row;   // [max(C, R)]
};

bool reserve(Expanded& state, int64_t count, Room& room) {
  const Problem& p = state.call.attention;
  room.stride = state.products.padded_columns(state.call.problem.nope_dim + state.call.problem.v_dim);
  const int64_t made = state.products.padded_rows(count) * room.stride;
  const int64_t floats = made + count * p.kv_lora_rank + std::max(p.kv_lora_rank, p.rope_dim) + 16;
  room.made = reinterpret_cast<float*>(
      task_scratch.reserve(static_cast<size_t>(floats) * sizeof(float)));
  if (!room.made) return false;
  room.rows = room.made + made;
  room.row = room.rows + count * p.kv_lora_rank;
  return true;
}

// Calls multiply(matrix, packed) for each head at work, and keeps what it made.
template <class Multiply>
bool expand_heads(Expanded& state, const Segment& rows, int64_t first, int64_t count, const Room& room,
                  Multiply multiply) {
  for (int64_t index = 0; index < state.heads; ++index) {
    const Matrix matrix = head_matrix(state.call, state.first_head + index);
    if (!multiply(matrix, state.packed + index * state.packed_floats)) return false;
    write_head(state, index, rows, first, count, room.made, room.stride, room.row);
  }
  return true;
}

bool expand_segment(Expanded& state, const Segment& rows, int64_t first, int64_t count) {
  const Problem& p = state.call.attention;
  Room room;
  if (!reserve(state, count, room)) return false;
  if (state.narrow) {
    const BFloat16Rows a =
        bfloat16_rows(p, rows, first, count, reinterpret_cast<BFloat16*>(room.rows), room.row);
    return expand_heads(state, rows, first, count, room, [&](const Matrix& m, const float* packed) {
      state.narrow->multiply(m, packed, a, room.made, room.stride);
      return true;
    });
  }
  const FloatRows a = float_rows(p, rows, first, count, room.rows);
  return expand_heads(state, rows, first, count, room, [&](const Matrix& m, const float* packed) {
    return state.products.multiply(m, packed, a, room.made, room.stride, row_scratch);
  });
}

void expand_rows(Expanded& state, int64_t task) {
  const Segments all = segments(state.call.attention, state.sequence);
  const int64_t begin = task * kRowsPerTask, end = begin + kRowsPerTask;
  for (int i = 0; i < all.count; ++i) {
    const Segment& rows = all.segment[i];
    const int64_t first = std::max(begin, rows.first);
    const int64_t last = std::min(end, rows.first + rows.count);
    if (first < last && !expand_segment(state, rows, first - rows.first, last - first))
      state.no_memory = true;
  }
}

// Attention of the heads at work as one problem: each head is a sequence of it.
Problem problem_of_heads(const Expanded& state) {
  const Problem& p = state.call.attention;
  const auto size = static_cast<int64_t>(element_size(p.type));
  const int64_t value = state.call.problem.v_dim, width = query_width(state.call);
  const int64_t row = (state.sequence * p.heads + state.first_head) * p.query_len;
  Problem inner = p;
  inner.cache_type = state.type;
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
  const auto size = static_cast<int64_t>(element_size(state.type));
  const int64_t keys = state.longest * query_width(state.call) * size;
  const int64_t values = state.longest * state.call.problem.v_dim * size;
  const Matrix matrix = head_matrix(state.call, 0);
  state.packed_floats =
      state.narrow ? state.narrow->packed_floats(matrix) : state.products.packed_floats(matrix);
  const int64_t packed = state.packed_floats * static_cast<int64_t>(sizeof(float));
  const int64_t most = std::min(kBytesPerProcessor * processors(), kMostBytes);
  state.heads_at_once = std::clamp<int64_t>(most / (keys + values + packed), 1, p.heads);
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

const BFloat16Products* narrow_products(const Call& call) {
  const Problem& p = call.attention;
  const int32_t rows = p.cache ? p.cache_type : p.type;
  const BFloat16Products* products = current_tier().bfloat16_heads;
  const bool is_narrow = rows == MLA_OPT_BFLOAT16 || is_quantized(rows);
  const bool takes = p.type == MLA_OPT_FLOAT32 || p.type == MLA_OPT_BFLOAT16;
  if (!products || !is_narrow || !takes) return nullptr;
  return products->fits(query_width(call), call.problem.v_dim, p.kv_lora_rank) ? products : nullptr;
}

int run_expanded(const Call& call, mla_opt_failure& failure) {
  const Problem& p = call.attention;
  if (store_rows(p, call.host, failure)) return 1;
  if (p.batch == 0 || p.heads == 0 || p.query_len == 0) return 0;
  const BFloat16Products* narrow = narrow_products(call);
  Expanded state{call, *current_tier().heads, narrow, narrow ? MLA_OPT_BFLOAT16 : p.type, 0,
                 longest_of(p), 0, nullptr, nullptr, nullptr, nullptr};
  if (!reserve(state)) return verdict(nullptr, true, failure);
  for (; state.first_head < p.heads; state.first_head += state.heads_at_once)
    if (attend_heads(state, failure)) return 1;
  return 0;
}

}  // namespace mla_opt
