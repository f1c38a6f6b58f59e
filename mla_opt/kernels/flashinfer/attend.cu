// The machine that is a GPU, for FlashInfer's kernel: compiled against the headers of its package.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <exception>
#include <flashinfer/attention/mla.cuh>

#include "../cuda/check.h"
#include "../cuda/machine.h"
#include "params.h"
#include "work.cuh"

namespace mla_opt::cuda {
namespace {

constexpr int kPlanThreads = 256, kPlanBlocks = 32;

__global__ void plan_work_kernel(const __grid_constant__ Arguments arguments,
                                 const __grid_constant__ Work work,
                                 const __grid_constant__ WorkArrays arrays) {
  plan_work(arguments, work, arrays);
}

bool succeeded(const char* what, cudaError_t status, mla_opt_failure& failure) {
  if (status == cudaSuccess) return true;
  cudaGetLastError();
  return refuse(failure, "%s: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

template <class Number>
cudaError_t attend_by_flashinfer(const Problem& p, const Work& work, const WorkArrays& arrays,
                                 cudaStream_t stream) {
  using Params = flashinfer::MLAParams<Number, Number, Number, int32_t>;
  return flashinfer::mla::BatchMLAPagedAttention<flashinfer::MaskMode::kNone, 512, 64>(
      make_params<Params>(p, arrays), 1, static_cast<uint32_t>(work.blocks), stream);
}

}  // namespace

// One on each multiprocessor: its shared memory is FlashInfer's for one.
int blocks_at_once() { return multiprocessors_of_device(); }

bool start_work(const Problem&, const Arguments& arguments, const Work& work,
                const WorkArrays& arrays, void* stream, mla_opt_failure& failure) {
  plan_work_kernel<<<kPlanBlocks, kPlanThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      arguments, work, arrays);
  return succeeded("the work of FlashInfer cannot be planned", cudaGetLastError(), failure);
}

bool start_flashinfer(const Problem& p, const Work& work, const WorkArrays& arrays, void* stream,
                      mla_opt_failure& failure) {
  const auto attend = p.type == MLA_OPT_FLOAT16 ? attend_by_flashinfer<__half>
                                                : attend_by_flashinfer<__nv_bfloat16>;
  try {
    return succeeded("FlashInfer's attention cannot be started",
                     attend(p, work, arrays, static_cast<cudaStream_t>(stream)), failure);
  } catch (const std::exception& error) {
    return refuse(failure, "FlashInfer: %s", error.what());
  }
}

}  // namespace mla_opt::cuda
