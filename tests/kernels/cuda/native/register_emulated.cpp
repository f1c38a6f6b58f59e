// The operators for ONNX Runtime's CUDA provider, registered as the CPU's: the memory of the emulated
// GPU is the host's, so ONNX Runtime runs them where there is no GPU.
#include "../../../../mla_opt/kernels/onnxruntime_cuda/cuda_operators.h"

extern "C" MLA_OPT_PUBLIC mla_opt::ort::Status* RegisterCustomOps(
    mla_opt::ort::SessionOptions* options, const mla_opt::ort::ApiBase* base) {
  using namespace mla_opt;
  using namespace mla_opt::ort;
  static Operator operators[] = {kCudaOperators[0], kCudaOperators[1]};
  api = base->GetApi(kApiVersion);
  CustomOpDomain* domain = nullptr;
  RETURN_IF_ERROR((call<Status*>(api, kCreateCustomOpDomain, "mla_opt", &domain)));
  for (Operator& op : operators) {
    op.provider = nullptr;
    RETURN_IF_ERROR(
        (call<Status*>(api, kCustomOpDomainAdd, domain, static_cast<const CustomOp*>(&op))));
  }
  return call<Status*>(api, kAddCustomOpDomain, options, domain);
}
