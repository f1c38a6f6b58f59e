// The few parts of ONNX Runtime's C ABI that a custom operator needs, declared by ourselves.
//
// ONNX Runtime's headers come with none of its Python packages. Its C ABI is append-only: OrtApi is
// a table of functions whose places never change, and OrtCustomOp is versioned by its first field.
// Named here are only the places that are used. Each was compared with ONNX Runtime's own headers
// of releases 1.21 and 1.23 (tests/kernels/native/check_abi.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mla_opt::ort {

// The API version that is asked for: ONNX Runtime 1.18, the first with every place used here.
constexpr uint32_t kApiVersion = 18;

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct Value;
struct TypeAndShape;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct MemoryInfo;
struct Allocator;

using Function = void (*)();

// OrtApi: functions by place.
struct Api {
  Function places[1];
};

// OrtApiBase.
struct ApiBase {
  const Api* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

enum Place : int {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetTensorElementType = 60,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorTypeAndShape = 65,
  kAllocatorFree = 76,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelInfoGetAttributeString = 87,
  kKernelContextGetInputCount = 88,
  kKernelContextGetOutputCount = 89,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseTensorTypeAndShape = 99,
  kReleaseAllocator = 132,
  kKernelContextGetGPUComputeStream = 193,
  kGetTensorMemoryInfo = 194,
  kKernelContextGetAllocator = 253,
  kKernelContextParallelFor = 274,  // since 1.18
  kKernelContextGetScratchBuffer = 277,  // since 1.18
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

// OrtCustomOpInputOutputCharacteristic.
enum Characteristic : int { kRequired = 0, kOptional = 1 };

// ONNXTensorElementDataType, as far as it is not an mla_opt_type.
enum ElementType : int { kAnyType = 0, kInt32 = 6, kInt64 = 7 };

// OrtCustomOp, with the fields that version 18 has.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const Api*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const CustomOp*, size_t);
  int (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const Api*, const KernelInfo*, void**);  // since 1.16
  Status* (*KernelComputeV2)(void*, KernelContext*);                                  // since 1.16
  Status* (*InferOutputShape)(const CustomOp*, ShapeInferContext*);                   // since 1.17
  int (*GetStartVersion)(const CustomOp*);                                            // since 1.17
  int (*GetEndVersion)(const CustomOp*);                                              // since 1.17
  size_t (*GetMayInplace)(int** inputs, int** outputs);                               // since 1.18
  void (*ReleaseMayInplace)(int* inputs, int* outputs);                               // since 1.18
  size_t (*GetAliasMap)(int** inputs, int** outputs);                                 // since 1.18
  void (*ReleaseAliasMap)(int* inputs, int* outputs);                                 // since 1.18
};

static_assert(sizeof(CustomOp) == 26 * sizeof(void*), "OrtCustomOp has 26 fields of one word");
static_assert(offsetof(CustomOp, KernelComputeV2) == 18 * sizeof(void*), "fields are in order");

template <class Result, class... Arguments>
Result call(const Api* api, Place place, Arguments... arguments) {
  return reinterpret_cast<Result (*)(Arguments...)>(api->places[place])(arguments...);
}

}  // namespace mla_opt::ort
