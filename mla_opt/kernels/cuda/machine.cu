// The machine that is a GPU.
#include <atomic>
#include <cstring>
#include <cuda.h>

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

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// From the driver that is loaded: the library is not linked with it, so that it loads without one.
EncodeTiled find_encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  constexpr char name[] = "cuTensorMapEncodeTiled";
#if CUDART_VERSION >= 12050
  const cudaError_t status =
      cudaGetDriverEntryPointByVersion(name, &function, 12000, cudaEnableDefault, &found);
#else
  const cudaError_t status = cudaGetDriverEntryPoint(name, &function, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess) cudaGetLastError();
  const bool is_there = status == cudaSuccess && found == cudaDriverEntryPointSuccess;
  return is_there ? reinterpret_cast<EncodeTiled>(function) : nullptr;
}

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

// Above 48 KB shared memory has to be asked for; asking again costs next to nothing.
template <class Kernel>
bool ask_for_memory(const char* what, Kernel kernel, const Grid& grid, mla_opt_failure& failure) {
  return grid.shared_bytes <= 48 * 1024 ||
         succeeded(what,
                   cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        grid.shared_bytes),
                   failure);
}

template <class Kernel, class... Rest>
bool start(const char* what, Kernel kernel, const Grid& grid, void* stream,
           mla_opt_failure& failure, const Rest&... arguments) {
  if (!ask_for_memory(what, kernel, grid, failure)) return false;
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

bool encode_tensor_map(const Rows& rows, int box_rows, TensorMap& map) {
  static const EncodeTiled encode = find_encode_tiled();
  if (!encode) return false;
  CUtensorMap made{};
  static_assert(sizeof map == sizeof made && alignof(TensorMap) >= alignof(CUtensorMap));
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(rows.columns),
                              static_cast<cuuint64_t>(rows.count)};
  const cuuint64_t stride = 2 * sizes[0];
  const cuuint32_t box[] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
  // Bits are copied as they are, whatever the type. A box is followed by the boxes beside it, so that
  // whole lines of the L2 cache are wanted.
  const CUresult status =
      encode(&made, CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, const_cast<void*>(rows.start), sizes, &stride,
             box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  std::memcpy(&map, &made, sizeof map);
  return status == CUDA_SUCCESS;
}

bool start_attend(const Problem& p, Width width, const Arguments& arguments, const Grid& grid,
                  void* stream, mla_opt_failure& failure) {
  constexpr char what[] = "the attention cannot be started";
  if (width != Width::kWarpgroups)
    return start(what, attend_kernel_for(p, width), grid, stream, failure, arguments);
  const WarpgroupKernel kernel = warpgroup_kernel_for(p);
  // First, as this makes a context current in a thread that has none yet: maps need one.
  if (!ask_for_memory(what, kernel, grid, failure)) return false;
  return start(what, kernel, grid, stream, failure, arguments, make_tensor_maps(p));
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
