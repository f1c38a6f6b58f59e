// How a check says why a problem is illegal.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>

#include "latent_attention.h"

namespace mla_opt {

// Notes the reason and returns false, as the checks do that call it.
__attribute__((format(printf, 2, 3))) inline bool refuse(mla_opt_failure& failure,
                                                         const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(failure.message, sizeof failure.message, format, arguments);
  va_end(arguments);
  return false;
}

// For %lld, whatever int64_t is called here.
inline long long ll(int64_t value) { return value; }

}  // namespace mla_opt
