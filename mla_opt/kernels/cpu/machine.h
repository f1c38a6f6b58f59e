// What is asked of the machine, once.
#pragma once

#include <cstdint>

namespace mla_opt {

// Processors that this process may run on.
int64_t processors();

// Bytes of second-level cache of one core; a usual size where the system does not tell.
int64_t second_level_cache_bytes();

}  // namespace mla_opt
