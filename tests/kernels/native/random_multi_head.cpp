#include "random_multi_head.h"

#include <cmath>
#include <cstring>
#include <sstream>

#include "../../../mla_opt/kernels/cpu/kv_b.h"
#include "../../../mla_opt/kernels/cpu/quantized_rows.h"
#include "../../../mla_opt/kernels/onnxruntime/multi_head_operands.h"
#include "allocations.h"
#include "definition.h"

using namespace mla_opt;

namespace {

constexpr int32_t kByteTypes[] = {MLA_OPT_INT8, MLA_OPT_UINT8, MLA_OPT_FLOAT8E4M3FN,
                                  MLA_OPT_FLOAT8E5M2};

// A legal node. `inner` is what it contains: its query is the absorbed one, in float64.
struct HeadsCase {
  Case inner;
  MultiHeadAttributes attributes{};
  Tensor query, kv_b, scales, zero_points, factors;
};

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step; }

void fill_bytes(Dice& dice, Tensor& tensor) {
  for (size_t i = 0; i < tensor.bytes; ++i) tensor.data[i] = static_cast<char>(dice.below(256));
}

void fill_between(Dice& dice, Tensor& tensor, double low, double high) {
  for (int64_t i = 0; i < tensor.count(); ++i) set_value(tensor, i, dice.between(low, high));
}

int32_t float_type(Dice& dice) {
  return static_cast<int32_t>(dice.of({MLA_OPT_FLOAT32, MLA_OPT_FLOAT16, MLA_OPT_BFLOAT16}));
}

void draw_plain(Dice& dice, HeadsCase& c, int64_t rows, int64_t columns) {
  const bool wide = c.query.type == MLA_OPT_FLOAT64 && dice.one_in(2);
  c.kv_b = make_tensor(wide ? int32_t{MLA_OPT_FLOAT64} : float_type(dice), {rows, columns});
  const double size = 1.0 / std::sqrt(static_cast<double>(columns));
  fill_between(dice, c.kv_b, -size, size);
}

// Of 8-bit floats only those below 2: bytes that are no number are none of a model's weights.
void fill_codes(Dice& dice, Tensor& codes) {
  fill_bytes(dice, codes);
  if (codes.type != MLA_OPT_FLOAT8E4M3FN && codes.type != MLA_OPT_FLOAT8E5M2) return;
  for (size_t i = 0; i < codes.bytes; ++i) codes.data[i] = static_cast<char>(codes.data[i] & 0xbb);
}

void draw_scaled(Dice& dice, HeadsCase& c, int64_t rows, int64_t columns) {
  auto& a = c.attributes;
  a.block_size = dice.one_in(2) ? columns : dice.of({1, 3, 16, 32, 128});
  a.block_rows = dice.of({1, 2, 7, 128});
  c.kv_b = make_tensor(kByteTypes[dice.below(4)], {rows, columns});
  fill_codes(dice, c.kv_b);
  const std::vector<int64_t> blocks = {up(rows, a.block_rows), up(columns, a.block_size)};
  c.scales = make_tensor(float_type(dice), blocks);
  const bool is_integer = c.kv_b.type == MLA_OPT_INT8 || c.kv_b.type == MLA_OPT_UINT8;
  fill_between(dice, c.scales, 0.0, (is_integer ? 0.02 : 2.0) / std::sqrt(double(columns)));
  if (!is_integer || dice.one_in(2)) return;
  c.zero_points = make_tensor(c.kv_b.type, blocks);
  fill_bytes(dice, c.zero_points);
}

void draw_packed(Dice& dice, HeadsCase& c, int64_t rows, int64_t columns) {
  auto& a = c.attributes;
  a.bits = dice.of({2, 4, 4, 8});
  a.block_size = dice.of({4, 16, 32, 32, 64, 128});
  const int64_t blocks = up(columns, a.block_size);
  c.kv_b = make_tensor(MLA_OPT_UINT8, {rows, blocks, a.block_size * a.bits / 8});
  fill_bytes(dice, c.kv_b);
  c.scales = make_tensor(float_type(dice), {rows, blocks});
  const double most = 4.0 / (1 << a.bits) / std::sqrt(static_cast<double>(columns));
  fill_between(dice, c.scales, 0.0, most);
  if (dice.one_in(3)) return;
  if (dice.one_in(3)) {
    c.zero_points = make_tensor(c.scales.type, {rows, blocks});
    fill_between(dice, c.zero_points, 0.0, static_cast<double>((1 << a.bits) - 1));
  } else {
    c.zero_points = make_tensor(MLA_OPT_UINT8, {rows, up(blocks * a.bits, 8)});
    fill_bytes(dice, c.zero_points);
  }
}

void draw_factors(Dice& dice, HeadsCase& c, int64_t columns) {
  if (!dice.one_in(3)) return;
  c.factors = make_tensor(MLA_OPT_FLOAT32, {2, columns});
  fill_between(dice, c.factors, 0.5, 1.5);
}

mla_opt_kv_b weights_of(const HeadsCase& c) {
  mla_opt_kv_b w{};
  w.type = c.kv_b.type;
  w.bits = static_cast<int32_t>(c.attributes.bits);
  w.scales_type = c.scales.type;
  w.zero_points_type = c.zero_points.type;
  w.block_size = c.attributes.block_size;
  w.block_rows = c.attributes.block_rows;
  w.codes = c.kv_b.data.get();
  w.scales = c.scales.data.get();
  w.zero_points = c.zero_points.data.get();
  w.factors = reinterpret_cast<const float*>(c.factors.data.get());
  return w;
}

// Row r of a head's part of kv_b.
struct HeadRows {
  mla_opt_kv_b weights;
  int64_t of_head, columns, of_keys;

  double at(int64_t head, int64_t row, int64_t column) const {
    const Matrix all{&weights, head * of_head, of_head, columns, of_keys};
    return number_at(all, row, column);
  }
};

HeadRows rows_of(const HeadsCase& c) {
  return {weights_of(c), c.attributes.nope_dim + c.attributes.v_dim,
          c.attributes.attention.kv_lora_rank, c.attributes.nope_dim};
}

Tensor absorbed(const HeadsCase& c) {
  const HeadRows rows = rows_of(c);
  const int64_t nope = c.attributes.nope_dim, width = c.query.dims[3], rank = rows.columns;
  std::vector<int64_t> dims = c.query.dims;
  dims[3] = rank + width - nope;
  Tensor result = make_tensor(MLA_OPT_FLOAT64, dims);
  for (int64_t i = 0; i < dims[0] * dims[1] * dims[2]; ++i) {
    const int64_t head = i / dims[2] % dims[1];
    for (int64_t d = 0; d < dims[3]; ++d) {
      double sum = 0.0;
      if (d >= rank) sum = value_at(c.query, i * width + nope + d - rank);
      for (int64_t n = 0; n < nope && d < rank; ++n)
        sum += value_at(c.query, i * width + n) * rows.at(head, n, d);
      set_value(result, i * dims[3] + d, sum);
    }
  }
  return result;
}

HeadsCase draw_case(Dice& dice) {
  HeadsCase c;
  c.inner = legal_case(dice);
  const Tensor& given = c.inner.input[kQuery];
  auto& a = c.attributes;
  a.attention = c.inner.attributes;
  a.nope_dim = dice.of({0, 1, 3, 8, 16, 33, 64});
  a.v_dim = dice.of({1, 2, 5, 16, 32, 47, 64});
  a.block_rows = 1;
  a.form = static_cast<int32_t>(dice.below(3));
  const int64_t rope = given.dims[3] - a.attention.kv_lora_rank;
  if (a.nope_dim + rope == 0) a.nope_dim = 1;
  c.query = make_tensor(given.type,
                        {given.dims[0], given.dims[1], given.dims[2], a.nope_dim + rope});
  fill_between(dice, c.query, -1.0, 1.0);
  const int64_t rows = given.dims[1] * (a.nope_dim + a.v_dim);
  void (*const draw[])(Dice&, HeadsCase&, int64_t, int64_t) = {draw_plain, draw_scaled, draw_packed};
  draw[dice.below(3)](dice, c, rows, a.attention.kv_lora_rank);
  draw_factors(dice, c, a.attention.kv_lora_rank);
  return c;
}

Operand operand_of(const Tensor& tensor) {
  Operand operand;
  if (!tensor.given()) return operand;
  operand.given = true;
  operand.data = tensor.data.get();
  operand.type = tensor.type;
  operand.rank = static_cast<int64_t>(tensor.dims.size());
  for (size_t axis = 0; axis < tensor.dims.size(); ++axis) operand.dims[axis] = tensor.dims[axis];
  return operand;
}

struct Results {
  Tensor output, new_cache, new_rope_cache;
};

Tensor output_of(int32_t type, const Shape& shape) {
  return make_tensor(type, {shape.dims, shape.dims + 4});
}

std::string run(const HeadsCase& c, Host& host, Results& results) {
  const Tensor* in = c.inner.input;
  const Operand operands[kMultiHeadInputCount] = {
      operand_of(c.query),         operand_of(c.kv_b),     operand_of(in[kLatent]),
      operand_of(in[kCache]),      operand_of(in[kPastLen]), operand_of(in[kBias]),
      operand_of(in[kSink]),       operand_of(in[kRopeCache]), operand_of(c.scales),
      operand_of(c.zero_points),   operand_of(c.factors)};
  mla_opt_multi_head_latent_attention problem;
  OutputShapes shapes;
  mla_opt_failure failure{};
  if (!make_multi_head_problem(operands, c.attributes, problem, shapes, failure))
    return std::string("refused: ") + failure.message;
  auto& p = problem.attention;
  results.output = output_of(p.type, shapes.shape[kOutput]);
  p.output = results.output.data.get();
  if (shapes.has[kNewCache]) {
    results.new_cache = output_of(p.cache_type, shapes.shape[kNewCache]);
    p.new_cache = results.new_cache.data.get();
  }
  if (shapes.has[kNewRopeCache]) {
    results.new_rope_cache = output_of(type_beside(p.cache_type), shapes.shape[kNewRopeCache]);
    p.new_rope_cache = results.new_rope_cache.data.get();
  }
  if (mla_opt_multi_head_latent_attention_run(&problem, run_tasks, &host, &failure) != 0)
    return host.order == Order::kFailing ? "" : std::string("refused: ") + failure.message;
  if (host.order == Order::kFailing) return host.called ? "the host's failure was lost" : "";
  if (host.order != Order::kForwards) return "";
  const long before = allocations();
  mla_opt_multi_head_latent_attention_run(&problem, run_tasks, &host, &failure);
  return allocations() == before ? "" : "memory was allocated once warm";
}

std::vector<double> projected(const HeadsCase& c, const std::vector<double>& latent) {
  const HeadRows rows = rows_of(c);
  const int64_t heads = c.query.dims[1], length = c.query.dims[2], value = c.attributes.v_dim;
  const int64_t count = c.query.dims[0] * heads * length;
  std::vector<double> output(static_cast<size_t>(count * value));
  for (int64_t i = 0; i < count; ++i)
    for (int64_t v = 0; v < value; ++v)
      for (int64_t d = 0; d < rows.columns; ++d)
        output[static_cast<size_t>(i * value + v)] +=
            latent[static_cast<size_t>(i * rows.columns + d)] *
            rows.at(i / length % heads, c.attributes.nope_dim + v, d);
  return output;
}

// Relative to the largest number of the output.
double tolerance(const HeadsCase& c) {
  const int32_t type = c.query.type;
  const int32_t kept = c.inner.has(kCache) ? c.inner.input[kCache].type : type;
  if (type == MLA_OPT_BFLOAT16 || kept == MLA_OPT_BFLOAT16 || is_quantized(kept))
    return 6e-2;
  if (type == MLA_OPT_FLOAT16) return 1e-2;
  return type == MLA_OPT_FLOAT64 ? 1e-12 : 5e-5;
}

std::string compare(const HeadsCase& c, const std::vector<double>& expected, const Tensor& output) {
  double largest = 0.0;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double actual = value_at(output, static_cast<int64_t>(i));
    if (std::fabs(actual - expected[i]) <= tolerance(c) * largest) continue;
    std::ostringstream text;
    text << "output[" << i << "] is " << actual << ", expected " << expected[i] << " beside " << largest;
    return text.str();
  }
  return "";
}

bool same(const Tensor& expected, const Tensor& actual) {
  return expected.dims == actual.dims &&
         (expected.bytes == 0 ||
          std::memcmp(expected.data.get(), actual.data.get(), expected.bytes) == 0);
}

std::string described(const HeadsCase& c) {
  std::ostringstream text;
  const auto& a = c.attributes;
  text << "multi-head: form " << a.form << ", N " << a.nope_dim << ", V " << a.v_dim << ", kv_b of type "
       << c.kv_b.type << ", bits " << a.bits << ", blocks " << a.block_rows << " x " << a.block_size
       << (c.zero_points.given() ? " with zero points" : "")
       << (c.factors.given() ? " with factors; " : "; ") << ::described(c.inner);
  return text.str();
}

}  // namespace

std::string run_multi_head(Dice& dice, Host& host) {
  HeadsCase c = draw_case(dice);
  Results results;
  std::string verdict = run(c, host, results);
  if (verdict.empty() && host.order != Order::kFailing) {
    c.inner.input[kQuery] = absorbed(c);
    const Expected expected = expected_of(c.inner);
    if (!same(expected.new_cache, results.new_cache)) verdict = "new_cache differs";
    if (!same(expected.new_rope_cache, results.new_rope_cache)) verdict = "new_rope_cache differs";
    if (verdict.empty()) verdict = compare(c, projected(c, expected.output), results.output);
  }
  return verdict.empty() ? "" : verdict + "\n  " + described(c);
}
