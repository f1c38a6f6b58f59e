#include "cuda_operators.h"

#include "../cuda/latent_attention_cuda.h"

namespace mla_opt {
namespace {

using namespace ort;

constexpr char kProvider[] = "CUDAExecutionProvider";

// Where the tensors of a call lie: scratch memory is asked for there.
Status* device_memory(KernelContext* context, const MemoryInfo** memory) {
  const Value* query = nullptr;
  RETURN_IF_ERROR((call<Status*>(api, kKernelContextGetInput,
                                 static_cast<const KernelContext*>(context), size_t{kQuery},
                                 &query)));
  return call<Status*>(api, kGetTensorMemoryInfo, query, memory);
}

// Memory that belongs to the stream of a call: given back as soon as the work that uses it has been
// started, it only goes to who comes later on that stream.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (data_) call<Status*>(api, kAllocatorFree, allocator_, data_);
    if (allocator_) call<void>(api, kReleaseAllocator, allocator_);
  }

  Status* allocate(const KernelContext* context, const MemoryInfo* memory, size_t size) {
    if (size == 0) return nullptr;
    RETURN_IF_ERROR(
        (call<Status*>(api, kKernelContextGetAllocator, context, memory, &allocator_)));
    return call<Status*>(api, kKernelContextGetScratchBuffer, context, memory, size, &data_);
  }

  void* data() const { return data_; }

 private:
  Allocator* allocator_ = nullptr;
  void* data_ = nullptr;
};

Status* compute(void* kernel, KernelContext* context) {
  mla_opt_latent_attention problem;
  mla_opt_failure failure;
  const MemoryInfo* memory = nullptr;
  void* stream = nullptr;
  Scratch scratch;
  RETURN_IF_ERROR(prepare(*static_cast<const Attributes*>(kernel), context, problem));
  RETURN_IF_ERROR((call<Status*>(api, kKernelContextGetGPUComputeStream,
                                 static_cast<const KernelContext*>(context), &stream)));
  RETURN_IF_ERROR(device_memory(context, &memory));
  const int multiprocessors = mla_opt_cuda_multiprocessors();
  const size_t size = mla_opt_cuda_latent_attention_workspace(&problem, multiprocessors);
  RETURN_IF_ERROR(scratch.allocate(context, memory, size));
  if (mla_opt_cuda_latent_attention_launch(&problem, multiprocessors, scratch.data(), size, stream,
                                           &failure) == 0)
    return nullptr;
  return failed(failure);
}

}  // namespace

const std::vector<Operator> kCudaOperators = make_operators(
    kProvider,
    {{MLA_OPT_FLOAT16, MLA_OPT_FLOAT16}, {MLA_OPT_BFLOAT16, MLA_OPT_BFLOAT16}}, compute);

}  // namespace mla_opt
