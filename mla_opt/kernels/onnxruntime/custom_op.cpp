// mla_opt's operators for ONNX Runtime: a custom operator library. On the CPU; and, in the library
// that `mla-opt build-kernels` makes, on CUDA too: ONNX Runtime takes each domain but once.
#include "node.h"

#if defined(MLA_OPT_WITH_CUDA)
#include "../onnxruntime_cuda/cuda_operators.h"
#else
#include "crossover.h"
#include "matmul_nbits_node.h"
#include "../cpu/matmul_nbits.h"
#include "multi_head_node.h"
#endif

namespace mla_opt {
namespace {

using namespace ort;

Status* compute(void* kernel, KernelContext* context) {
  mla_opt_latent_attention problem;
  mla_opt_failure failure;
  RETURN_IF_ERROR(prepare(*static_cast<const Attributes*>(kernel), context, problem));
  if (mla_opt_latent_attention_run(&problem, parallel_for, context, &failure) == 0) return nullptr;
  return failure.host_error ? static_cast<Status*>(failure.host_error) : failed(failure);
}

const std::vector<Operator> kOperators = make_operators(
    nullptr,
    {
        {MLA_OPT_FLOAT32, MLA_OPT_FLOAT32},
        {MLA_OPT_FLOAT16, MLA_OPT_FLOAT16},
        {MLA_OPT_BFLOAT16, MLA_OPT_BFLOAT16},
        {MLA_OPT_FLOAT64, MLA_OPT_FLOAT64},
        {MLA_OPT_FLOAT32, MLA_OPT_FLOAT16},
        {MLA_OPT_FLOAT32, MLA_OPT_BFLOAT16},
        {MLA_OPT_FLOAT32, MLA_OPT_INT8},
        {MLA_OPT_FLOAT32, MLA_OPT_FLOAT8E4M3FN},
    },
    compute);

Status* add(CustomOpDomain* domain, const CustomOp& op) {
  return call<Status*>(api, kCustomOpDomainAdd, domain, &op);
}

Status* register_all(SessionOptions* options) {
  CustomOpDomain* domain = nullptr;
  RETURN_IF_ERROR((call<Status*>(api, kCreateCustomOpDomain, "mla_opt", &domain)));
  for (const Operator& op : kOperators) RETURN_IF_ERROR(add(domain, op));
#if defined(MLA_OPT_WITH_CUDA)
  for (const Operator& op : kCudaOperators) RETURN_IF_ERROR(add(domain, op));
#else
  // What this says of the CPU is nothing to a model that may run on CUDA: there its body says what
  // counting says.
  RETURN_IF_ERROR(add(domain, kCrossoverOperator));
  for (const MultiHeadOperator& op : kMultiHeadOperators) RETURN_IF_ERROR(add(domain, op));
  // Where it is not registered, its body is ONNX Runtime's own operator.
  if (mla_opt_matmul_nbits_runs_here()) RETURN_IF_ERROR(add(domain, kNBitsOperator));
#endif
  return call<Status*>(api, kAddCustomOpDomain, options, domain);
}

}  // namespace
}  // namespace mla_opt

extern "C" MLA_OPT_PUBLIC mla_opt::ort::Status* RegisterCustomOps(
    mla_opt::ort::SessionOptions* options, const mla_opt::ort::ApiBase* base) {
  using namespace mla_opt;
  api = base->GetApi(ort::kApiVersion);
  if (api) return register_all(options);
  // Version 1 is understood by all, and the place of CreateStatus is the same in all.
  return ort::call<ort::Status*>(base->GetApi(1), ort::kCreateStatus, static_cast<int>(ort::kFail),
                                 "mla_opt's kernels need ONNX Runtime 1.18 or newer");
}
