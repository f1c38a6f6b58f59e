// The machine that is a GPU.
#include <atomic>
#include <cstring>

#include "attend_table.h"
#include "check.h"
#include "combine.cuh"
#include "machine.h"
#include "write_cache.cuh"

namespace mla_opt::cuda {
namespace {

template <class Element>
__global__ void combine_kernel(const __grid_constant__ Arguments arguments, int rows) {
  combine<Element>(arguments, rows);
}

__global__ void write_cache_kernel(const __grid_constant__ Arguments arguments) {
  write_cache(arguments);
}

bool succeeded(const char* what, cudaError_t status, mla_opt_failure& failure) {
  if (status == cudaSuccess) return true;
  // A launch that failed is also kept as the last error: it must not be found by whoever asks next.
  cudaGetLastError();
  return refuse(failure, "%s: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

bool no_code_for(int device, mla_opt_failure& failure) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return refuse(failure,
                "the CUDA kernels were compiled for architectures %s, the device has %d%d: run"
                " `mla-opt build-kernels --arch %d%d`",
                MLA_OPT_CUDA_ARCHITECTURES, major, minor, major, minor);
}

// Code for 90a is the only code for 9.0 there is, when it is there: `build-kernels` sees to that.
const bool kHasWarpgroups = std::strstr(MLA_OPT_CUDA_ARCHITECTURES, "90a") != nullptr;

// Architectures found, by device; 0: not asked yet.
constexpr int kDevices = 64;
std::atomic<int> found[kDevices];

int ask_architecture(const Problem& p, int device, mla_opt_failure& failure) {
  cudaFuncAttributes attributes;
  const auto kernel = reinterpret_cast<const void*>(attend_kernel_for(p, Width::kNarrow));
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    no_code_for(device, failure);
    return 0;
  }
  // The version of the PTX that the code was made of is what __CUDA_ARCH__ was.
  return succeeded("the CUDA kernels cannot be loaded", status, failure) ? attributes.ptxVersion : 0;
}

template <class Kernel, class... Rest>
bool start(const char* what, Kernel kernel, const Grid& grid, void* stream,
           mla_opt_failure& failure, const Rest&... arguments) {
  // Above 48 KB shared memory has to be asked for; asking again costs next to nothing.
  if (grid.shared_bytes > 48 * 1024 &&
      !succeeded(what,
                 cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      grid.shared_bytes),
                 failure))
    return false;
  kernel<<<static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.threads),
           static_cast<size_t>(grid.shared_bytes), static_cast<cudaStream_t>(stream)>>>(
      arguments...);
  return succeeded(what, cudaGetLastError(), failure);
}

}  // namespace

bool find_device(const Problem& p, Device& device, mla_opt_failure& failure) {
  int index = 0;
  if (!succeeded("no CUDA device can be used", cudaGetDevice(&index), failure)) return false;
  int architecture = index < kDevices ? found[index].load() : 0;
  if (architecture == 0) architecture = ask_architecture(p, index, failure);
  if (index < kDevices) found[index] = architecture;
  device = {memory_of(architecture), architecture == 90 && kHasWarpgroups};
  return architecture != 0;
}

int multiprocessors_of_device() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess)
    return count;
  cudaGetLastError();
  return 0;
}

bool start_attend(const Problem& p, Width width, const Arguments& arguments, const Grid& grid,
                  void* stream, mla_opt_failure& failure) {
  return start("the attention cannot be started", attend_kernel_for(p, width), grid, stream,
               failure, arguments);
}

bool start_combine(const Problem& p, int rows, const Arguments& arguments, const Grid& grid,
                   void* stream, mla_opt_failure& failure) {
  const auto kernel =
      p.type == MLA_OPT_FLOAT16 ? combine_kernel<Half> : combine_kernel<BFloat16>;
  return start("the combination of splits cannot be started", kernel, grid, stream, failure,
               arguments, rows);
}

bool start_write_cache(const Arguments& arguments, const Grid& grid, void* stream,
                       mla_opt_failure& failure) {
  return start("the writing of the cache cannot be started", write_cache_kernel, grid, stream,
               failure, arguments);
}

}  // namespace mla_opt::cuda
