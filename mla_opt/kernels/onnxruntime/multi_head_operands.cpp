#include "multi_head_operands.h"

#include <algorithm>

#include "../cpu/refusal.h"

namespace mla_opt {
namespace {

bool check_shape(const char* name, const Operand& operand, std::initializer_list<int64_t> expected,
                 mla_opt_failure& failure) {
  if (operand.rank != static_cast<int64_t>(expected.size()))
    return refuse(failure, "%s has rank %lld, expected %zu", name, ll(operand.rank),
                  expected.size());
  for (size_t axis = 0; axis < expected.size(); ++axis)
    if (operand.dims[axis] != expected.begin()[axis])
      return refuse(failure, "%s has size %lld on axis %zu, expected %lld", name,
                    ll(operand.dims[axis]), axis, ll(expected.begin()[axis]));
  return true;
}

bool check_attributes(const MultiHeadAttributes& a, mla_opt_failure& failure) {
  constexpr int64_t most = int64_t{1} << 40;
  const int64_t sizes[] = {a.attention.kv_lora_rank, a.nope_dim, a.v_dim, a.block_size, a.block_rows};
  const char* const names[] = {"kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "block_size",
                               "block_rows"};
  const int64_t least[] = {1, 0, 1, 0, 1};
  for (int i = 0; i < 5; ++i)
    if (sizes[i] < least[i] || sizes[i] > most)
      return refuse(failure, "%s is %lld, at least %lld is needed", names[i], ll(sizes[i]),
                    ll(least[i]));
  if (a.bits != 0 && a.bits != 2 && a.bits != 4 && a.bits != 8)
    return refuse(failure, "bits is %lld, expected 0, 2, 4 or 8", ll(a.bits));
  if (a.bits && a.block_size * a.bits % 8)
    return refuse(failure, "a block of %lld numbers of %lld bits fills no bytes", ll(a.block_size),
                  ll(a.bits));
  if (a.bits && (a.block_size < 1 || a.block_rows != 1))
    return refuse(failure, "a packed kv_b needs block_size of at least 1, and block_rows 1");
  return true;
}

bool check_query(const Operand& query, const MultiHeadAttributes& a, mla_opt_failure& failure) {
  if (!query.given) return refuse(failure, "query is missing");
  if (query.rank != 4) return refuse(failure, "query has rank %lld, expected 4", ll(query.rank));
  if (query.dims[3] >= a.nope_dim) return true;
  return refuse(failure, "qk_nope_head_dim is %lld, but query has width %lld", ll(a.nope_dim),
                ll(query.dims[3]));
}

int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step; }

bool check_kv_b(const Operand (&in)[kMultiHeadInputCount], const MultiHeadAttributes& a,
                mla_opt_failure& failure) {
  const int64_t rows = in[kHeadQuery].dims[1] * (a.nope_dim + a.v_dim);
  const int64_t columns = a.attention.kv_lora_rank;
  const int64_t blocks = a.block_size ? up(columns, a.block_size) : 0;
  if (!in[kKvB].given) return refuse(failure, "kv_b is missing");
  if (in[kKvBScales].given != (blocks > 0))
    return refuse(failure, "kv_b_scales is %s, but block_size is %lld",
                  in[kKvBScales].given ? "given" : "missing", ll(a.block_size));
  const bool fits =
      a.bits ? check_shape("kv_b", in[kKvB], {rows, blocks, a.block_size * a.bits / 8}, failure)
             : check_shape("kv_b", in[kKvB], {rows, columns}, failure);
  if (!fits) return false;
  const int64_t scale_rows = up(rows, a.block_rows);
  if (blocks && !check_shape("kv_b_scales", in[kKvBScales], {scale_rows, blocks}, failure))
    return false;
  if (in[kKvBFactors].given && !check_shape("kv_b_factors", in[kKvBFactors], {2, columns}, failure))
    return false;
  const Operand& zeros = in[kKvBZeroPoints];
  if (!zeros.given) return true;
  const bool packed = a.bits && zeros.type == MLA_OPT_UINT8;
  const int64_t width = packed ? up(blocks * a.bits, 8) : blocks;
  return check_shape("kv_b_zero_points", zeros, {packed ? rows : scale_rows, width}, failure);
}

void fill_kv_b(const Operand (&in)[kMultiHeadInputCount], const MultiHeadAttributes& a, mla_opt_kv_b& w) {
  w = {};
  w.type = in[kKvB].type;
  w.bits = static_cast<int32_t>(a.bits);
  w.scales_type = in[kKvBScales].type;
  w.zero_points_type = in[kKvBZeroPoints].type;
  w.block_size = a.block_size;
  w.block_rows = a.block_rows;
  w.codes = in[kKvB].data;
  w.scales = in[kKvBScales].data;
  w.zero_points = in[kKvBZeroPoints].data;
  w.factors = static_cast<const float*>(in[kKvBFactors].data);
}

}  // namespace

bool make_multi_head_problem(const Operand (&in)[kMultiHeadInputCount],
                             const MultiHeadAttributes& attributes,
                             mla_opt_multi_head_latent_attention& problem, OutputShapes& outputs,
                             mla_opt_failure& failure) {
  if (!check_attributes(attributes, failure) || !check_query(in[kHeadQuery], attributes, failure) ||
      !check_kv_b(in, attributes, failure))
    return false;
  // What it contains is given the query that absorption makes.
  Operand inner[kInputCount] = {in[kHeadQuery], in[kHeadLatent], in[kHeadCache],    in[kHeadPastLen],
                                in[kHeadBias],  in[kHeadSink],   in[kHeadRopeCache]};
  inner[kQuery].dims[3] += attributes.attention.kv_lora_rank - attributes.nope_dim;
  problem = {};
  if (!make_problem(inner, attributes.attention, problem.attention, outputs, failure)) return false;
  problem.struct_size = sizeof problem;
  problem.nope_dim = attributes.nope_dim;
  problem.v_dim = attributes.v_dim;
  problem.form = attributes.form;
  fill_kv_b(in, attributes, problem.kv_b);
  outputs.shape[kOutput].dims[3] = attributes.v_dim;
  return true;
}

}  // namespace mla_opt
