#include "crossover.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <new>

#include "../cpu/quantized_rows.h"
#include "../cpu/tier.h"

namespace mla_opt {

using namespace ort;

namespace {

// Dims of one head, as mla_opt/geometry.py names them.
struct HeadDims {
  int64_t kv_lora_rank;
  int64_t qk_nope_head_dim;
  int64_t qk_rope_head_dim;
  int64_t v_head_dim;
};

struct Kernel {
  HeadDims dims;
  int64_t rows_type;
};

// How many times the rate of ONNX Runtime's float32 products those of the attention are, by what it
// runs on and the type of the rows. Measured where absorbed and expanded prompts of DeepSeek's dims
// take equally long, with float32 rows behind 1024 and 4096 others (Intel Xeon, family 6, model 167);
// the kernel's and ONNX Runtime's own rates on AMD's Zen 5 give the same for AVX-512. Float16 rows are
// no slower on tiles. Bfloat16 rows are so fast there that expanding took longer at every length (512
// tokens on 4096 rows: 573 ms against 272). 1, which is to count operations, where nobody has measured.
double advantage(const char* tier, int64_t rows_type) {
  const bool is_amx = std::strcmp(tier, "amx") == 0;
  const bool is_bfloat16 = rows_type == MLA_OPT_BFLOAT16 ||
                           is_quantized(static_cast<int32_t>(rows_type));  // which becomes such
  if (is_bfloat16) return is_amx ? 6.0 : 1.0;
  if (is_amx) return 2.2;
  return std::strncmp(tier, "avx512", 6) == 0 ? 1.3 : 1.0;
}

// Per head, key and new token, absorbed attention multiplies 2 C + R numbers and expanded N + R + V;
// expanding itself takes C (N + V) a key, and absorbing as many a new token.
int64_t crossover(const HeadDims& d, double advantage) {
  const auto expansion =
      static_cast<double>(d.kv_lora_rank) * static_cast<double>(d.qk_nope_head_dim + d.v_head_dim);
  const auto absorbed = static_cast<double>(2 * d.kv_lora_rank + d.qk_rope_head_dim);
  const auto expanded =
      static_cast<double>(d.qk_nope_head_dim + d.qk_rope_head_dim + d.v_head_dim);
  const double limit = expansion / (absorbed / advantage - expanded);
  // Beyond any prompt, and still a factor of one that fits.
  constexpr int64_t never = std::numeric_limits<int32_t>::max();
  if (!(limit > 0) || limit > static_cast<double>(never)) return never;
  return static_cast<int64_t>(std::ceil(limit));
}

Status* read_number(const KernelInfo* info, const char* name, int64_t& number) {
  return call<Status*>(api, kKernelInfoGetAttributeInt64, info, name, &number);
}

Status* create(const CustomOp*, const Api*, const KernelInfo* info, void** made) {
  Kernel kernel;
  RETURN_IF_ERROR(read_number(info, "kv_lora_rank", kernel.dims.kv_lora_rank));
  RETURN_IF_ERROR(read_number(info, "qk_nope_head_dim", kernel.dims.qk_nope_head_dim));
  RETURN_IF_ERROR(read_number(info, "qk_rope_head_dim", kernel.dims.qk_rope_head_dim));
  RETURN_IF_ERROR(read_number(info, "v_head_dim", kernel.dims.v_head_dim));
  RETURN_IF_ERROR(read_number(info, "rows_type", kernel.rows_type));
  const HeadDims& d = kernel.dims;
  if (d.kv_lora_rank < 1 || d.qk_nope_head_dim < 0 || d.qk_rope_head_dim < 0 || d.v_head_dim < 0)
    return error(kInvalidArgument, "PrefillCrossover: a dimension is negative, or kv_lora_rank is 0");
  *made = new (std::nothrow) Kernel(kernel);
  return *made ? nullptr : error(kFail, "PrefillCrossover: no memory for a kernel");
}

Status* compute(void* made, KernelContext* context) {
  const auto& kernel = *static_cast<const Kernel*>(made);
  const int64_t shape[] = {1};
  Value* value = nullptr;
  void* data = nullptr;
  RETURN_IF_ERROR((call<Status*>(api, kKernelContextGetOutput, context, size_t{0}, &shape[0],
                                 size_t{1}, &value)));
  RETURN_IF_ERROR((call<Status*>(api, kGetTensorMutableData, value, &data)));
  *static_cast<int64_t*>(data) =
      crossover(kernel.dims, advantage(current_tier().name, kernel.rows_type));
  return nullptr;
}

CustomOp make_crossover_operator() {
  CustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const CustomOp*) { return "PrefillCrossover"; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const CustomOp*) -> size_t { return 0; };
  op.GetOutputTypeCount = [](const CustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const CustomOp*, size_t) -> int { return kInt64; };
  op.GetOutputCharacteristic = [](const CustomOp*, size_t) -> int { return kRequired; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = [](void* made) { delete static_cast<Kernel*>(made); };
  op.GetStartVersion = [](const CustomOp*) { return 1; };
  op.GetEndVersion = [](const CustomOp*) { return 1; };
  return op;
}

}  // namespace

const CustomOp kCrossoverOperator = make_crossover_operator();

}  // namespace mla_opt
