// Rows times a matrix in 4 or 8 bits: the rows are rounded to int8, and integers multiplied. Few rows
// read the matrix as it is stored, as fast as memory gives it; many read panels of it that are brought
// into the order of vectors first.
#include "matmul_nbits.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "machine.h"
#include "nbits_products.h"
#include "refusal.h"
#include "run.h"
#include "tier.h"

namespace mla_opt {

#if defined(__x86_64__)
namespace avx512vnni {
extern const NBitsProducts products;
}
#endif

namespace {

thread_local Scratch rows_scratch;   // of the calling thread
thread_local Scratch panel_scratch;  // of the thread that computes

// Up to so many rows, turning a panel takes longer than it saves.
constexpr int64_t kFewRows = 7;
// Bytes of the matrix that one task reads for few rows: enough to be worth handing out.
constexpr int64_t kBytesPerTask = 64 << 10;
// Numbers that one task rounds.
constexpr int64_t kNumbersPerTask = 64 << 10;
// Rows that a panel is turned for, at least, where panels are too few for all threads.
constexpr int64_t kRowsPerTask = 96;
constexpr int64_t kTasksPerThread = 4;
// Rows that are rounded at a time: what is kept of them stays small, and a panel is turned for many.
constexpr int64_t kMostRows = 1024;

struct Product {
  const NBits& problem;
  const NBitsProducts& products;
  RoundedRows rounded{};
  int64_t rows_at_once = 0;     // that a task rounds
  int64_t columns_at_once = 0;  // that a task multiplies few rows with
  int64_t row_blocks = 1;       // in which a panel is multiplied
  std::atomic<bool> no_memory{false};
};

int64_t divided_up(int64_t number, int64_t by) { return (number + by - 1) / by; }

// What the processor has; null: nothing.
const NBitsProducts* find_products() {
#if defined(__x86_64__)
  if (avx512vnni::products.runs_here()) return &avx512vnni::products;
#endif
  return nullptr;
}

bool is_wide(const char* tier) {
  return std::strncmp(tier, "avx512", 6) == 0 || std::strcmp(tier, "amx") == 0;
}

bool check_nbits(const NBits& p, mla_opt_failure& failure) {
  if (p.struct_size != sizeof p)
    return refuse(failure, "the host was built for another version: its struct has another size");
  if (p.bits != 4 && p.bits != 8) return refuse(failure, "bits is %d, not 4 or 8", p.bits);
  if (p.block_size != 32 && p.block_size != 64 && p.block_size != 128 && p.block_size != 256)
    return refuse(failure, "block_size is %lld, not 32, 64, 128 or 256", ll(p.block_size));
  if (p.scales_type != MLA_OPT_FLOAT32 && p.scales_type != MLA_OPT_FLOAT16)
    return refuse(failure, "scales must be float32 or float16");
  if (p.rows < 0 || p.inner < 1 || p.columns < 1)
    return refuse(failure, "a is [%lld, %lld] and b has %lld rows: sizes must be positive",
                  ll(p.rows), ll(p.inner), ll(p.columns));
  const auto width = static_cast<double>(p.inner) + 512.0;
  if (static_cast<double>(p.rows) * width >= 0x1p59 ||
      static_cast<double>(p.columns) * width >= 0x1p59 ||
      static_cast<double>(p.rows) * static_cast<double>(p.columns) >= 0x1p59)
    return refuse(failure, "a, b or y has more than 2^59 elements");
  if (!p.b || !p.scales || (p.rows && (!p.a || !p.y)))
    return refuse(failure, "a, b, scales or y is missing");
  return true;
}

bool are_few(const NBits& p) { return p.rows <= kFewRows; }

// Room for the rounded rows, all of which start at cache lines.
bool reserve(Product& product) {
  const NBits& p = product.problem;
  const auto groups = static_cast<size_t>(p.rows * groups_of(p));
  constexpr size_t kParts = kGroup / kPart;
  const size_t codes = groups * kGroup;
  const size_t floats = divided_up(static_cast<int64_t>(groups * kParts), 16) * 16;
  const size_t lanes = are_few(p) ? groups * kLaneSums : 0;
  char* at = rows_scratch.reserve(codes + 2 * floats * sizeof(float) + lanes * sizeof(int32_t));
  if (!at) return false;
  product.rounded.codes = reinterpret_cast<int8_t*>(at);
  product.rounded.scales = reinterpret_cast<float*>(at + codes);
  product.rounded.part_sums = reinterpret_cast<int32_t*>(product.rounded.scales + floats);
  product.rounded.lane_sums = lanes ? product.rounded.part_sums + floats : nullptr;
  return true;
}

void round_rows(Product& product, int64_t task) {
  const int64_t first = task * product.rows_at_once;
  const int64_t end = std::min(first + product.rows_at_once, product.problem.rows);
  for (int64_t row = first; row < end; ++row)
    product.products.round(product.problem, row, product.rounded);
}

void multiply_columns(Product& product, int64_t task) {
  const int64_t first = task * product.columns_at_once;
  product.products.multiply_few(product.problem, product.rounded, first,
                                std::min(first + product.columns_at_once, product.problem.columns));
}

void multiply_panel(Product& product, int64_t task) {
  const NBits& p = product.problem;
  const int64_t column = task / product.row_blocks * product.products.panel_columns;
  const int64_t block = task % product.row_blocks;
  char* panel = panel_scratch.reserve(product.products.panel_bytes(p));
  if (!panel) {
    product.no_memory = true;
    return;
  }
  product.products.pack(p, column, panel);
  product.products.multiply_many(p, product.rounded, panel, column,
                                 p.rows * block / product.row_blocks,
                                 p.rows * (block + 1) / product.row_blocks);
}

void* multiply(Product& product, const Host& host) {
  const NBits& p = product.problem;
  const int64_t threads = processors();
  product.rows_at_once = std::max<int64_t>(1, kNumbersPerTask / p.inner);
  const int64_t roundings = divided_up(p.rows, product.rows_at_once);
  if (void* error = on_host<Product, round_rows>(host, product, roundings)) return error;
  if (are_few(p)) {
    const int64_t least = divided_up(p.columns, kTasksPerThread * threads);
    product.columns_at_once = std::max(least, kBytesPerTask / bytes_of_row(p) + 1);
    return on_host<Product, multiply_columns>(host, product,
                                              divided_up(p.columns, product.columns_at_once));
  }
  const int64_t panels = divided_up(p.columns, product.products.panel_columns);
  const int64_t wanted = divided_up(kTasksPerThread * threads, panels);
  product.row_blocks = std::max<int64_t>(1, std::min(wanted, p.rows / kRowsPerTask));
  return on_host<Product, multiply_panel>(host, product, panels * product.row_blocks);
}

int run_rows(const NBits& problem, const NBitsProducts& products, const Host& host,
             mla_opt_failure& failure) {
  Product product{problem, products};
  if (!reserve(product)) return verdict(nullptr, true, failure);
  void* error = multiply(product, host);
  return verdict(error, product.no_memory, failure);
}

int run_nbits(const NBits& problem, const Host& host, mla_opt_failure& failure) {
  failure.message[0] = '\0';
  failure.host_error = nullptr;
  const NBitsProducts* products = find_products();
  if (!check_nbits(problem, failure)) return 1;
  if (!products) return !refuse(failure, "this processor has no int8 products of 512 bits (VNNI)");
  for (int64_t first = 0; first < problem.rows; first += kMostRows) {
    NBits some = problem;
    some.rows = std::min(kMostRows, problem.rows - first);
    some.a += first * problem.inner;
    some.y += first * problem.columns;
    if (run_rows(some, *products, host, failure)) return 1;
  }
  return 0;
}

}  // namespace
}  // namespace mla_opt

extern "C" int mla_opt_matmul_nbits_runs_here(void) {
  using namespace mla_opt;
  return find_products() && is_wide(current_tier().name);
}

extern "C" int mla_opt_matmul_nbits_run(const mla_opt_matmul_nbits* problem,
                                        mla_opt_parallel_for parallel_for, void* host,
                                        mla_opt_failure* failure) {
  return mla_opt::run_nbits(*problem, {parallel_for, host}, *failure);
}
