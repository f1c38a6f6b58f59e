#include "matmul_nbits_operands.h"

#include "../cpu/refusal.h"

namespace mla_opt {
namespace {

// Of a size or a product of sizes: what is beyond fits no memory, and sums of such fit a number.
constexpr int64_t kMost = int64_t{1} << 40;

bool check_attributes(const NBitsAttributes& a, mla_opt_failure& failure) {
  if (a.inner < 1 || a.inner > kMost || a.columns < 1 || a.columns > kMost)
    return refuse(failure, "K is %lld and N is %lld, both at least 1 are needed", ll(a.inner),
                  ll(a.columns));
  if (a.bits != 4 && a.bits != 8) return refuse(failure, "bits is %lld, expected 4 or 8", ll(a.bits));
  if (a.block_size == 32 || a.block_size == 64 || a.block_size == 128 || a.block_size == 256)
    return true;
  return refuse(failure, "block_size is %lld, expected 32, 64, 128 or 256", ll(a.block_size));
}

// Elements of a tensor of any rank; -1 where they are beyond counting.
int64_t elements(const Operand& operand) {
  if (operand.rank > kMostDims) return -1;
  int64_t count = 1;
  for (int64_t axis = 0; axis < operand.rank; ++axis)
    if (__builtin_mul_overflow(count, operand.dims[axis], &count)) return -1;
  return count;
}

// A stored tensor: exporters give it two or three dims, or one, and the order of its numbers is the
// same in all.
bool check_stored(const char* name, const Operand& operand, int64_t rows, int64_t of_row,
                  mla_opt_failure& failure) {
  int64_t expected;
  if (__builtin_mul_overflow(rows, of_row, &expected))
    return refuse(failure, "%s has rows of %lld numbers, and N is %lld: that fits no memory", name,
                  ll(of_row), ll(rows));
  const int64_t count = elements(operand);
  if (count == expected) return true;
  return refuse(failure, "%s has %lld elements, expected %lld", name, ll(count), ll(expected));
}

bool check_type(const char* name, const Operand& operand, int32_t type, mla_opt_failure& failure) {
  if (operand.type == type) return true;
  return refuse(failure, "%s has element type %d, expected %d", name, operand.type, type);
}

bool check_scales_type(const Operand& scales, mla_opt_failure& failure) {
  return scales.type == MLA_OPT_FLOAT16 || check_type("scales", scales, MLA_OPT_FLOAT32, failure);
}

bool check_rows(const Operand& a, int64_t inner, mla_opt_failure& failure) {
  if (a.rank < 1 || a.rank > kMostDims)
    return refuse(failure, "A has rank %lld, expected 1 to %d", ll(a.rank), kMostDims);
  if (a.dims[a.rank - 1] == inner) return elements(a) >= 0 || refuse(failure, "A fits no memory");
  return refuse(failure, "A has width %lld, expected %lld", ll(a.dims[a.rank - 1]), ll(inner));
}

constexpr int32_t kUint8 = 2;

bool check_inputs(const Operand (&in)[kNBitsInputCount], const NBitsAttributes& a,
                  mla_opt_failure& failure) {
  if (!in[kA].given || !in[kB].given || !in[kScales].given)
    return refuse(failure, "A, B or scales is missing");
  if (in[kGroupIndex].given) return refuse(failure, "g_idx is given, which is not supported");
  const int64_t blocks = (a.inner + a.block_size - 1) / a.block_size;
  if (!check_rows(in[kA], a.inner, failure) || !check_type("A", in[kA], MLA_OPT_FLOAT32, failure) ||
      !check_type("B", in[kB], kUint8, failure) ||
      !check_stored("B", in[kB], a.columns, blocks * (a.block_size * a.bits / 8), failure) ||
      !check_scales_type(in[kScales], failure) ||
      !check_stored("scales", in[kScales], a.columns, blocks, failure))
    return false;
  if (in[kZeroPoints].given &&
      (!check_type("zero_points", in[kZeroPoints], kUint8, failure) ||
       !check_stored("zero_points", in[kZeroPoints], a.columns, (blocks * a.bits + 7) / 8, failure)))
    return false;
  return !in[kProductBias].given ||
         (check_type("bias", in[kProductBias], MLA_OPT_FLOAT32, failure) &&
          check_stored("bias", in[kProductBias], a.columns, 1, failure));
}

}  // namespace

bool make_nbits_problem(const Operand (&in)[kNBitsInputCount], const NBitsAttributes& attributes,
                        mla_opt_matmul_nbits& problem, mla_opt_failure& failure) {
  if (!check_attributes(attributes, failure) || !check_inputs(in, attributes, failure)) return false;
  problem = {};
  problem.struct_size = sizeof problem;
  problem.rows = elements(in[kA]) / attributes.inner;
  problem.inner = attributes.inner;
  problem.columns = attributes.columns;
  problem.block_size = attributes.block_size;
  problem.bits = static_cast<int32_t>(attributes.bits);
  problem.scales_type = in[kScales].type;
  problem.a = static_cast<const float*>(in[kA].data);
  problem.b = static_cast<const uint8_t*>(in[kB].data);
  problem.scales = in[kScales].data;
  problem.zero_points = static_cast<const uint8_t*>(in[kZeroPoints].data);
  problem.bias = static_cast<const float*>(in[kProductBias].data);
  return true;
}

}  // namespace mla_opt
