#include "allocations.h"

#include <cstddef>

namespace {
thread_local long count = 0;
}

long allocations() { return count; }

// Linked with --wrap for each of them: whoever calls the function calls this.
extern "C" {
void* __real_malloc(size_t size);
void* __real_aligned_alloc(size_t alignment, size_t size);
void* __real__Znwm(size_t size);

void* __wrap_malloc(size_t size) {
  ++count;
  return __real_malloc(size);
}

void* __wrap_aligned_alloc(size_t alignment, size_t size) {
  ++count;
  return __real_aligned_alloc(alignment, size);
}

// operator new(size_t)
void* __wrap__Znwm(size_t size) {
  ++count;
  return __real__Znwm(size);
}
}
