// The functions of CUDA's driver that tests/gpu calls, with their signatures, on memory of the host:
// so that everything of tests/gpu but the kernels' speed is tried where there is no GPU.
#include "driver_emulated.h"

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#define MLA_OPT_PUBLIC_C extern "C" __attribute__((visibility("default")))

namespace mla_opt::emulator {
namespace {

constexpr int kInvalidValue = 1;

struct Graph {
  std::vector<std::function<void()>> work;
};

struct Event {
  std::chrono::steady_clock::time_point time;
};

Graph* captured = nullptr;

}  // namespace

void submit(std::function<void()> work) {
  if (captured)
    captured->work.push_back(std::move(work));
  else
    work();
}

}  // namespace mla_opt::emulator

using namespace mla_opt::emulator;

MLA_OPT_PUBLIC_C int cuInit(unsigned flags) { return flags == 0 ? 0 : kInvalidValue; }

MLA_OPT_PUBLIC_C int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? 0 : kInvalidValue;
}

MLA_OPT_PUBLIC_C int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = &captured;
  return device == 0 ? 0 : kInvalidValue;
}

MLA_OPT_PUBLIC_C int cuCtxSetCurrent(void* context) {
  return context == &captured ? 0 : kInvalidValue;
}

MLA_OPT_PUBLIC_C int cuDeviceGetAttribute(int* value, int attribute, int device) {
  switch (attribute) {
    case 16:  // multiprocessors
      *value = 2;
      break;
    case 38:  // bytes of the L2 cache
      *value = 1 << 16;
      break;
    case 75:  // major version
      *value = 9;
      break;
    case 76:  // minor version
      *value = 0;
      break;
    default:
      return kInvalidValue;
  }
  return device == 0 ? 0 : kInvalidValue;
}

MLA_OPT_PUBLIC_C int cuDeviceGetName(char* name, int length, int) {
  std::strncpy(name, "emulated", static_cast<size_t>(length));
  return 0;
}

MLA_OPT_PUBLIC_C int cuGetErrorString(int status, const char** text) {
  *text = status == kInvalidValue ? "invalid value" : "another error";
  return 0;
}

MLA_OPT_PUBLIC_C int cuMemGetInfo_v2(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 28;
  return 0;
}

MLA_OPT_PUBLIC_C int cuCtxSynchronize() { return 0; }

MLA_OPT_PUBLIC_C int cuMemAlloc_v2(unsigned long long* address, size_t size) {
  if (size == 0) return kInvalidValue;
  void* memory = std::aligned_alloc(256, (size + 255) / 256 * 256);
  std::memset(memory, 0xff, size);
  *address = reinterpret_cast<uintptr_t>(memory);
  return 0;
}

MLA_OPT_PUBLIC_C int cuMemFree_v2(unsigned long long address) {
  std::free(reinterpret_cast<void*>(address));
  return 0;
}

MLA_OPT_PUBLIC_C int cuMemcpyHtoD_v2(unsigned long long to, const void* from, size_t size) {
  std::memcpy(reinterpret_cast<void*>(to), from, size);
  return 0;
}

MLA_OPT_PUBLIC_C int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t size) {
  std::memcpy(to, reinterpret_cast<const void*>(from), size);
  return 0;
}

MLA_OPT_PUBLIC_C int cuMemcpyDtoDAsync_v2(unsigned long long to, unsigned long long from, size_t size,
                                          void*) {
  submit([=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size); });
  return 0;
}

MLA_OPT_PUBLIC_C int cuStreamCreate(void** stream, unsigned) {
  static char streams[1024];
  static int used = 0;
  *stream = &streams[used++ % 1024];
  return 0;
}

MLA_OPT_PUBLIC_C int cuStreamBeginCapture_v2(void* stream, int) {
  if (captured || !stream) return kInvalidValue;
  captured = new Graph;
  return 0;
}

MLA_OPT_PUBLIC_C int cuStreamEndCapture(void*, void** graph) {
  *graph = captured;
  captured = nullptr;
  return *graph ? 0 : kInvalidValue;
}

MLA_OPT_PUBLIC_C int cuGraphInstantiateWithFlags(void** executable, void* graph,
                                                 unsigned long long) {
  *executable = new Graph(*static_cast<Graph*>(graph));
  return 0;
}

MLA_OPT_PUBLIC_C int cuGraphDestroy(void* graph) {
  delete static_cast<Graph*>(graph);
  return 0;
}

MLA_OPT_PUBLIC_C int cuGraphExecDestroy(void* graph) { return cuGraphDestroy(graph); }

MLA_OPT_PUBLIC_C int cuGraphLaunch(void* graph, void*) {
  for (const auto& work : static_cast<Graph*>(graph)->work) work();
  return 0;
}

MLA_OPT_PUBLIC_C int cuEventCreate(void** event, unsigned) {
  *event = new Event;
  return 0;
}

MLA_OPT_PUBLIC_C int cuEventRecord(void* event, void*) {
  static_cast<Event*>(event)->time = std::chrono::steady_clock::now();
  return 0;
}

MLA_OPT_PUBLIC_C int cuEventSynchronize(void*) { return 0; }

MLA_OPT_PUBLIC_C int cuEventElapsedTime_v2(float* milliseconds, void* start, void* end) {
  const auto elapsed = static_cast<Event*>(end)->time - static_cast<Event*>(start)->time;
  *milliseconds = std::chrono::duration<float, std::milli>(elapsed).count();
  return 0;
}

MLA_OPT_PUBLIC_C int cuEventDestroy_v2(void* event) {
  delete static_cast<Event*>(event);
  return 0;
}
