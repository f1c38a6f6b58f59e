#include "machine.h"

#include <algorithm>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace mla_opt {
namespace {

int64_t count_processors() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return std::thread::hardware_concurrency();
}

int64_t read_cache_size() {
#if defined(__linux__) && defined(_SC_LEVEL2_CACHE_SIZE)
  return sysconf(_SC_LEVEL2_CACHE_SIZE);
#elif defined(__APPLE__)
  int64_t size = 0;
  size_t length = sizeof size;
  return sysctlbyname("hw.l2cachesize", &size, &length, nullptr, 0) == 0 ? size : 0;
#else
  return 0;
#endif
}

}  // namespace

int64_t processors() {
  static const int64_t count = std::max<int64_t>(1, count_processors());
  return count;
}

int64_t second_level_cache_bytes() {
  static const int64_t size = read_cache_size();
  return size > 0 ? size : 512 << 10;
}

}  // namespace mla_opt
