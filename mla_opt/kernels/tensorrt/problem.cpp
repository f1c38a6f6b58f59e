#include "problem.h"

#include "log.h"

namespace mla_opt::tensorrt {
namespace {

using nvinfer1::DataType;

const char* const kNames[kMostInputs] = {"query", "latent", "cache", "past_len", "bias", "sink"};

long long ll(int64_t value) { return value; }

bool has_rank(const Operand* inputs, Input input, int32_t rank) {
  const int32_t found = inputs[input].dims.nbDims;
  if (found == rank) return true;
  return fail("LatentAttention: %s has rank %d, expected %d", kNames[input], found, rank);
}

bool fits(const Operand* inputs, Input input, int32_t axis, int64_t wanted) {
  const int64_t size = inputs[input].dims.d[axis];
  if (size == wanted || size < 0 || wanted < 0) return true;
  return fail("LatentAttention: axis %d of %s is %lld, expected %lld", axis, kNames[input],
              ll(size), ll(wanted));
}

// Latent rows [B, 1, any, C+R].
bool are_rows(const Operand* inputs, Input input, int64_t batch, int64_t width) {
  return has_rank(inputs, input, 4) && fits(inputs, input, 0, batch) &&
         fits(inputs, input, 1, 1) && fits(inputs, input, 3, width);
}

// Strides of a bias of rank 1 to 4 along B, H, S and T.
bool set_bias(const Operand* inputs, mla_opt_latent_attention& problem) {
  const nvinfer1::Dims& dims = inputs[kBias].dims;
  if (dims.nbDims < 1 || dims.nbDims > 4)
    return fail("LatentAttention: bias has rank %d, expected 1 to 4", dims.nbDims);
  const nvinfer1::Dims& query = inputs[kQuery].dims;
  const int64_t wanted[4] = {query.d[0], query.d[1], query.d[2], inputs[kCache].dims.d[2]};
  int64_t stride = 1;
  for (int axis = 3; axis >= 0; --axis) {
    const int place = axis - (4 - dims.nbDims);
    const int64_t size = place < 0 ? 1 : dims.d[place];
    problem.bias_strides[axis] = size == 1 ? 0 : stride;
    if (size != 1 && !fits(inputs, kBias, place, wanted[axis])) return false;
    stride *= size;
  }
  problem.bias_type = inputs[kBias].type == DataType::kBOOL ? MLA_OPT_BOOL : problem.type;
  return true;
}

}  // namespace

bool make_problem(const Fields& fields, const Operand* inputs, int32_t count,
                  mla_opt_latent_attention& problem) {
  problem = {};
  problem.struct_size = sizeof problem;
  if (count < kLeastInputs || count > kMostInputs)
    return fail("LatentAttention: %d inputs, expected %d to %d", count, kLeastInputs, kMostInputs);
  if (!has_rank(inputs, kQuery, 4)) return false;
  const nvinfer1::Dims& query = inputs[kQuery].dims;
  const int64_t width = query.d[3];
  if (width < fields.kv_lora_rank)
    return fail("LatentAttention: query has width %lld, less than kv_lora_rank %d", ll(width),
                fields.kv_lora_rank);
  if (!are_rows(inputs, kLatent, query.d[0], width) ||
      !are_rows(inputs, kCache, query.d[0], width) || !has_rank(inputs, kPastLen, 1) ||
      !fits(inputs, kPastLen, 0, query.d[0]))
    return false;
  problem.type =
      inputs[kQuery].type == DataType::kHALF ? MLA_OPT_FLOAT16 : MLA_OPT_BFLOAT16;
  problem.cache_type = problem.bias_type = problem.type;
  problem.causal = fields.causal;
  const nvinfer1::Dims& largest = inputs[kQuery].largest;
  problem.batch = largest.d[0];
  problem.heads = largest.d[1];
  problem.query_len = largest.d[2];
  problem.new_len = inputs[kLatent].largest.d[2];
  problem.cache_len = inputs[kCache].largest.d[2];
  problem.kv_lora_rank = fields.kv_lora_rank;
  problem.rope_dim = width - fields.kv_lora_rank;
  problem.scale = fields.scale;
  if (count > kBias && !set_bias(inputs, problem)) return false;
  return count <= kSink ||
         (has_rank(inputs, kSink, 1) && fits(inputs, kSink, 0, problem.heads));
}

}  // namespace mla_opt::tensorrt
