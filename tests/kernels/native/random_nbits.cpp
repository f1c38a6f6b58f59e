#include "random_nbits.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "../../../mla_opt/kernels/onnxruntime/matmul_nbits_operands.h"
#include "allocations.h"
#include "tensor.h"

using namespace mla_opt;

namespace {

constexpr int32_t kUint8 = 2;
constexpr int64_t kPart = 32;  // numbers of a row that are rounded with one scale

struct Product {
  NBitsAttributes attributes{};
  int64_t rows = 0;
  Tensor input[kNBitsInputCount];
  std::string fault;  // what a refusal has to say; empty: legal
};

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step; }

void fill_bytes(Dice& dice, Tensor& tensor) {
  for (size_t i = 0; i < tensor.bytes; ++i) tensor.data[i] = static_cast<char>(dice.below(256));
}

void fill_between(Dice& dice, Tensor& tensor, double low, double high) {
  for (int64_t i = 0; i < tensor.count(); ++i) set_value(tensor, i, dice.between(low, high));
}

Product draw(Dice& dice) {
  Product product;
  auto& a = product.attributes;
  a.inner = dice.one_in(2) ? 1 + dice.below(300) : dice.of({32, 64, 128, 256, 384});
  a.columns = 1 + dice.below(70);
  a.bits = dice.of({4, 8});
  a.block_size = dice.of({32, 64, 128, 256});
  product.rows = dice.one_in(2) ? 1 + dice.below(8) : dice.below(110);
  const int64_t blocks = up(a.inner, a.block_size);
  Tensor* in = product.input;
  in[kA] = make_tensor(MLA_OPT_FLOAT32, {product.rows, a.inner});
  fill_between(dice, in[kA], -2.0, 2.0);
  in[kB] = make_tensor(kUint8, {a.columns, blocks, a.block_size * a.bits / 8});
  fill_bytes(dice, in[kB]);
  const int64_t kinds[] = {MLA_OPT_FLOAT32, MLA_OPT_FLOAT16};
  in[kScales] = make_tensor(static_cast<int32_t>(kinds[dice.below(2)]), {a.columns * blocks});
  fill_between(dice, in[kScales], -0.02, 0.02);
  if (dice.one_in(2)) {
    in[kZeroPoints] = make_tensor(kUint8, {a.columns, up(blocks * a.bits, 8)});
    fill_bytes(dice, in[kZeroPoints]);
  }
  if (dice.one_in(2)) {
    in[kProductBias] = make_tensor(MLA_OPT_FLOAT32, {a.columns});
    fill_between(dice, in[kProductBias], -1.0, 1.0);
  }
  return product;
}

void break_it(Dice& dice, Product& product) {
  auto& a = product.attributes;
  Tensor* in = product.input;
  switch (dice.below(9)) {
    case 0:
      a.bits = dice.of({0, 2, 3, 5, 16, -4});
      product.fault = "bits is";
      break;
    case 1:
      a.block_size = dice.of({0, 16, 48, 512, -32});
      product.fault = "block_size is";
      break;
    case 2:
      a.columns = dice.of({0, -1, int64_t{1} << 62});
      product.fault = "N is";
      break;
    case 3:
      a.inner += 1;
      product.fault = "A has width";
      break;
    case 4:
      in[kB] = make_tensor(kUint8, {in[kB].count() + 1});
      product.fault = "B has";
      break;
    case 5:
      in[kScales] = make_tensor(MLA_OPT_BFLOAT16, in[kScales].dims);
      product.fault = "scales has element type";
      break;
    case 6:
      in[kZeroPoints] = make_tensor(MLA_OPT_FLOAT32, {a.columns});
      product.fault = "zero_points has element type";
      break;
    case 7:
      in[kGroupIndex] = make_tensor(kInt32, {a.inner});
      product.fault = "g_idx";
      break;
    default:
      in[kProductBias] = make_tensor(MLA_OPT_FLOAT32, {a.columns + 1});
      product.fault = "bias has";
  }
}

void read_operands(const Product& product, Operand (&operands)[kNBitsInputCount]) {
  for (int i = 0; i < kNBitsInputCount; ++i) {
    const Tensor& input = product.input[i];
    if (!input.given()) continue;
    operands[i].given = true;
    operands[i].data = input.data.get();
    operands[i].type = input.type;
    operands[i].rank = static_cast<int64_t>(input.dims.size());
    std::copy(input.dims.begin(), input.dims.end(), operands[i].dims);
  }
}

int packed_at(const Tensor& bytes, int64_t row, int64_t of_row, int64_t bits, int64_t at) {
  const auto byte = static_cast<uint8_t>(bytes.data[row * of_row + at * bits / 8]);
  return bits == 8 ? byte : byte >> at % 2 * 4 & 15;
}

double weight(const Product& product, int64_t column, int64_t at) {
  const auto& a = product.attributes;
  const int64_t blocks = up(a.inner, a.block_size), block = at / a.block_size;
  const Tensor* in = product.input;
  const int code = packed_at(in[kB], column, blocks * a.block_size * a.bits / 8, a.bits, at);
  const int zero = in[kZeroPoints].given()
                       ? packed_at(in[kZeroPoints], column, up(blocks * a.bits, 8), a.bits, block)
                       : 1 << (a.bits - 1);
  return (code - zero) * value_at(in[kScales], column * blocks + block);
}

// A row of A as it is rounded.
std::vector<double> rounded_row(const Product& product, int64_t row) {
  const int64_t inner = product.attributes.inner;
  std::vector<double> numbers(static_cast<size_t>(inner));
  for (int64_t first = 0; first < inner; first += kPart) {
    const int64_t end = std::min(first + kPart, inner);
    float most = 0.0f;
    const auto number = [&](int64_t at) {
      return static_cast<float>(value_at(product.input[kA], row * inner + at));
    };
    for (int64_t at = first; at < end; ++at) most = std::max(most, std::fabs(number(at)));
    const float scale = most / 127.0f, by = 1.0f / scale;
    for (int64_t at = first; at < end; ++at)
      numbers[static_cast<size_t>(at)] =
          most > 0.0f ? std::nearbyint(static_cast<double>(number(at) * by)) * static_cast<double>(scale) : 0.0;
  }
  return numbers;
}

std::string judge(const Product& product, const Tensor& y) {
  const auto& a = product.attributes;
  double largest = 0.0, worst = 0.0;
  for (int64_t row = 0; row < product.rows; ++row) {
    const std::vector<double> numbers = rounded_row(product, row);
    for (int64_t column = 0; column < a.columns; ++column) {
      double sum = 0.0;
      for (int64_t at = 0; at < a.inner; ++at)
        sum += numbers[static_cast<size_t>(at)] * weight(product, column, at);
      if (product.input[kProductBias].given()) sum += value_at(product.input[kProductBias], column);
      largest = std::max(largest, std::fabs(sum));
      const double error = std::fabs(value_at(y, row * a.columns + column) - sum);
      worst = std::max(worst, error >= 0.0 ? error : INFINITY);
    }
  }
  if (worst <= 1e-5 * largest) return "";
  std::ostringstream text;
  text << "y is up to " << worst << " off, its largest number is " << largest << "\n  nbits: rows "
       << product.rows << " inner " << a.inner << " columns " << a.columns << " bits " << a.bits
       << " block " << a.block_size << " zero points " << product.input[kZeroPoints].given();
  return text.str();
}

}  // namespace

bool multiplies_nbits() { return mla_opt_matmul_nbits_runs_here() != 0; }

std::string run_nbits(Dice& dice, Host& host) {
  Product product = draw(dice);
  if (dice.one_in(4)) break_it(dice, product);
  Operand operands[kNBitsInputCount];
  mla_opt_matmul_nbits problem;
  mla_opt_failure failure{};
  read_operands(product, operands);
  if (!make_nbits_problem(operands, product.attributes, problem, failure)) {
    if (product.fault.empty()) return std::string("refused: ") + failure.message;
    return std::strstr(failure.message, product.fault.c_str())
               ? ""
               : std::string("another message: ") + failure.message;
  }
  if (!product.fault.empty()) return "not refused: " + product.fault;
  Tensor y = make_tensor(MLA_OPT_FLOAT32, {product.rows, product.attributes.columns});
  problem.y = reinterpret_cast<float*>(y.data.get());
  const bool done = mla_opt_matmul_nbits_run(&problem, run_tasks, &host, &failure) == 0;
  if (host.order == Order::kFailing && host.called)
    return !done && failure.host_error == &host ? "" : "the host's error is not handed back";
  if (!done) return std::string("not done: ") + failure.message;
  if (host.order == Order::kForwards) {
    const long before = allocations();
    mla_opt_matmul_nbits_run(&problem, run_tasks, &host, &failure);
    if (allocations() != before) return "memory was allocated once warm";
  }
  return judge(product, y);
}
