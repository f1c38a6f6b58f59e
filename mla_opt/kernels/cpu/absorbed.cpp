// The absorbed form: queries times W_UK, latent attention, its output times W_UV.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "machine.h"
#include "multi_head_call.h"

namespace mla_opt {
namespace {

thread_local Scratch shared_scratch;  // of the calling thread: absorbed queries, and their outputs
thread_local Scratch row_scratch, packed_scratch, task_scratch;

// Query rows of a task, at least: unpacking the weights of a head takes as long as some of them.
constexpr int64_t kLeastRows = 32;
constexpr int64_t kTasksPerProcessor = 4;

struct Absorbed {
  const Call& call;
  const HeadProducts& products;
  char* query;   // [B, H, S, C+R]
  char* output;  // [B, H, S, C]
  int64_t chunks, chunk_rows;  // of the B * S query rows of a head
  std::atomic<bool> no_memory{false};
};

// Some of the query rows of a head.
struct Rows {
  int64_t head, first, count;
};

Rows rows_of(const Absorbed& state, int64_t task) {
  const Problem& p = state.call.attention;
  const int64_t first = task % state.chunks * state.chunk_rows;
  return {task / state.chunks, first, std::min(state.chunk_rows, p.batch * p.query_len - first)};
}

// The row of [B, H, S] that is row i of a head.
int64_t row_at(const Problem& p, int64_t head, int64_t i) {
  return (i / p.query_len * p.heads + head) * p.query_len + i % p.query_len;
}

// Room for rows that a task reads, and for those that it makes.
struct Room {
  float *in, *out;
  int64_t in_stride, out_stride;
};

bool reserve(Absorbed& state, int64_t count, int64_t in, int64_t out, Room& room) {
  room.in_stride = in;
  room.out_stride = state.products.padded_columns(out);
  const int64_t floats = count * (room.in_stride + room.out_stride) + 16;
  room.out = reinterpret_cast<float*>(
      task_scratch.reserve(static_cast<size_t>(floats) * sizeof(float)));
  room.in = room.out + count * room.out_stride;
  if (!room.out) state.no_memory = true;
  return room.out != nullptr;
}

void copy_rope(const Absorbed& state, int64_t row) {
  const Problem& p = state.call.attention;
  const auto size = static_cast<int64_t>(element_size(p.type));
  const int64_t from = row * query_width(state.call) + state.call.problem.nope_dim;
  const int64_t to = row * row_width(p) + p.kv_lora_rank;
  std::memcpy(state.query + to * size, static_cast<const char*>(p.query) + from * size,
              static_cast<size_t>(p.rope_dim * size));
}

void absorb_query(Absorbed& state, int64_t task) {
  const Problem& p = state.call.attention;
  const Rows rows = rows_of(state, task);
  const int64_t nope = state.call.problem.nope_dim, rank = p.kv_lora_rank;
  Room room;
  if (!reserve(state, rows.count, nope, rank, room)) return;
  for (int64_t i = 0; i < rows.count; ++i)
    read_floats(p.query, p.type, row_at(p, rows.head, rows.first + i) * query_width(state.call), nope,
                room.in + i * room.in_stride);
  if (!state.products.sum_rows(key_matrix(state.call, rows.head),
                               {room.in, room.in_stride, rows.count}, room.out, room.out_stride,
                               {row_scratch, packed_scratch}))
    state.no_memory = true;
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t row = row_at(p, rows.head, rows.first + i);
    write_floats(room.out + i * room.out_stride, rank, state.query, p.type, row * row_width(p));
    copy_rope(state, row);
  }
}

void project_output(Absorbed& state, int64_t task) {
  const Problem& p = state.call.attention;
  const Rows rows = rows_of(state, task);
  const int64_t rank = p.kv_lora_rank, value = state.call.problem.v_dim;
  Room room;
  if (!reserve(state, rows.count, rank, value, room)) return;
  for (int64_t i = 0; i < rows.count; ++i)
    read_floats(state.output, p.type, row_at(p, rows.head, rows.first + i) * rank, rank,
                room.in + i * room.in_stride);
  if (!state.products.dot_rows(value_matrix(state.call, rows.head),
                               {room.in, room.in_stride, rows.count}, room.out, room.out_stride,
                               {row_scratch, packed_scratch}))
    state.no_memory = true;
  for (int64_t i = 0; i < rows.count; ++i)
    write_floats(room.out + i * room.out_stride, value, p.output, p.type,
                 row_at(p, rows.head, rows.first + i) * value);
}

// As few chunks as keep all processors busy.
void split(Absorbed& state) {
  const Problem& p = state.call.attention;
  const int64_t rows = std::max<int64_t>(1, p.batch * p.query_len);
  const int64_t wanted = kTasksPerProcessor * processors() / std::max<int64_t>(1, p.heads) + 1;
  state.chunk_rows = std::max(kLeastRows, (rows + wanted - 1) / wanted);
  state.chunks = (rows + state.chunk_rows - 1) / state.chunk_rows;
}

size_t in_lines(int64_t elements, int32_t type) {
  return (static_cast<size_t>(elements) * element_size(type) + 63) / 64 * 64;
}

int attend(Absorbed& state, mla_opt_failure& failure) {
  Problem inner = state.call.attention;
  inner.query = state.query;
  inner.output = state.output;
  return run(inner, state.call.host, failure);
}

}  // namespace

int run_absorbed(const Call& call, mla_opt_failure& failure) {
  const Problem& p = call.attention;
  const int64_t rows = p.batch * p.heads * p.query_len;
  const size_t query = in_lines(rows * row_width(p), p.type);
  char* memory = shared_scratch.reserve(query + in_lines(rows * p.kv_lora_rank, p.type) + 64);
  if (!memory) return verdict(nullptr, true, failure);
  Absorbed state{call, *current_tier().heads, memory, memory + query, 1, 1};
  split(state);
  const int64_t tasks = rows ? p.heads * state.chunks : 0;
  if (verdict(on_host<Absorbed, absorb_query>(call.host, state, tasks), state.no_memory, failure) ||
      attend(state, failure))
    return 1;
  return verdict(on_host<Absorbed, project_output>(call.host, state, tasks), state.no_memory, failure);
}

}  // namespace mla_opt
