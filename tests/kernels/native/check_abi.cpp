// Compares abi.h with ONNX Runtime's own headers; compiles only if they agree.
#include <onnxruntime_c_api.h>

#include "../../../mla_opt/kernels/cpu/latent_attention.h"
#include "../../../mla_opt/kernels/onnxruntime/abi.h"

namespace ort = mla_opt::ort;

#define SAME_PLACE(function, place) \
  static_assert(offsetof(OrtApi, function) / sizeof(void*) == ort::place, #function)
SAME_PLACE(CreateStatus, kCreateStatus);
SAME_PLACE(CreateCustomOpDomain, kCreateCustomOpDomain);
SAME_PLACE(CustomOpDomain_Add, kCustomOpDomainAdd);
SAME_PLACE(AddCustomOpDomain, kAddCustomOpDomain);
SAME_PLACE(GetTensorMutableData, kGetTensorMutableData);
SAME_PLACE(GetTensorElementType, kGetTensorElementType);
SAME_PLACE(GetDimensionsCount, kGetDimensionsCount);
SAME_PLACE(GetDimensions, kGetDimensions);
SAME_PLACE(GetTensorTypeAndShape, kGetTensorTypeAndShape);
SAME_PLACE(KernelInfoGetAttribute_float, kKernelInfoGetAttributeFloat);
SAME_PLACE(KernelInfoGetAttribute_int64, kKernelInfoGetAttributeInt64);
SAME_PLACE(KernelContext_GetInputCount, kKernelContextGetInputCount);
SAME_PLACE(KernelContext_GetOutputCount, kKernelContextGetOutputCount);
SAME_PLACE(KernelContext_GetInput, kKernelContextGetInput);
SAME_PLACE(KernelContext_GetOutput, kKernelContextGetOutput);
SAME_PLACE(AllocatorFree, kAllocatorFree);
SAME_PLACE(ReleaseAllocator, kReleaseAllocator);
SAME_PLACE(KernelContext_GetGPUComputeStream, kKernelContextGetGPUComputeStream);
SAME_PLACE(GetTensorMemoryInfo, kGetTensorMemoryInfo);
SAME_PLACE(KernelContext_GetAllocator, kKernelContextGetAllocator);
SAME_PLACE(KernelContext_GetScratchBuffer, kKernelContextGetScratchBuffer);
SAME_PLACE(ReleaseStatus, kReleaseStatus);
SAME_PLACE(ReleaseTensorTypeAndShapeInfo, kReleaseTensorTypeAndShape);
SAME_PLACE(KernelContext_ParallelFor, kKernelContextParallelFor);

#define SAME_FIELD(theirs, ours) \
  static_assert(offsetof(OrtCustomOp, theirs) == offsetof(ort::CustomOp, ours), #theirs)
SAME_FIELD(version, version);
SAME_FIELD(CreateKernel, CreateKernel);
SAME_FIELD(GetName, GetName);
SAME_FIELD(GetExecutionProviderType, GetExecutionProviderType);
SAME_FIELD(GetInputType, GetInputType);
SAME_FIELD(GetInputTypeCount, GetInputTypeCount);
SAME_FIELD(GetOutputType, GetOutputType);
SAME_FIELD(GetOutputTypeCount, GetOutputTypeCount);
SAME_FIELD(KernelCompute, KernelCompute);
SAME_FIELD(KernelDestroy, KernelDestroy);
SAME_FIELD(GetInputCharacteristic, GetInputCharacteristic);
SAME_FIELD(GetOutputCharacteristic, GetOutputCharacteristic);
SAME_FIELD(GetInputMemoryType, GetInputMemoryType);
SAME_FIELD(GetVariadicInputMinArity, GetVariadicInputMinArity);
SAME_FIELD(GetVariadicInputHomogeneity, GetVariadicInputHomogeneity);
SAME_FIELD(GetVariadicOutputMinArity, GetVariadicOutputMinArity);
SAME_FIELD(GetVariadicOutputHomogeneity, GetVariadicOutputHomogeneity);
SAME_FIELD(CreateKernelV2, CreateKernelV2);
SAME_FIELD(KernelComputeV2, KernelComputeV2);
SAME_FIELD(InferOutputShapeFn, InferOutputShape);
SAME_FIELD(GetStartVersion, GetStartVersion);
SAME_FIELD(GetEndVersion, GetEndVersion);
SAME_FIELD(GetMayInplace, GetMayInplace);
SAME_FIELD(ReleaseMayInplace, ReleaseMayInplace);
SAME_FIELD(GetAliasMap, GetAliasMap);
SAME_FIELD(ReleaseAliasMap, ReleaseAliasMap);

static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED} == ort::kAnyType);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32} == ort::kInt32);
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT} == int{MLA_OPT_FLOAT32});
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL} == int{MLA_OPT_BOOL});
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16} == int{MLA_OPT_FLOAT16});
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE} == int{MLA_OPT_FLOAT64});
static_assert(int{ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16} == int{MLA_OPT_BFLOAT16});
static_assert(int{ORT_FAIL} == ort::kFail && int{ORT_INVALID_ARGUMENT} == ort::kInvalidArgument);
static_assert(int{INPUT_OUTPUT_REQUIRED} == ort::kRequired);
static_assert(int{INPUT_OUTPUT_OPTIONAL} == ort::kOptional);
