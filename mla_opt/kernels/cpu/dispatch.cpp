// Which tier is used: the best that runs here, unless another is asked for.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tier.h"

namespace mla_opt {

#if MLA_OPT_HAS_AMX
namespace amx {
extern const Tier tier;
}
#endif
#if defined(__x86_64__)
namespace avx512bf16 {
extern const Tier tier;
}
namespace avx512 {
extern const Tier tier;
}
namespace avx2 {
extern const Tier tier;
}
#elif defined(__aarch64__)
namespace neon {
extern const Tier tier;
}
#endif
namespace portable {
extern const Tier tier;
}

namespace {

const Tier* const kTiers[] = {
#if MLA_OPT_HAS_AMX
    &amx::tier,
#endif
#if defined(__x86_64__)
    &avx512bf16::tier, &avx512::tier, &avx2::tier,
#elif defined(__aarch64__)
    &neon::tier,
#endif
    &portable::tier,
};

const Tier* find(const char* name) {
  for (const Tier* tier : kTiers)
    if (tier->runs_here() && (!name || std::strcmp(tier->name, name) == 0)) return tier;
  return nullptr;
}

// A name that the environment asks for but the machine cannot run is no reason to fail.
const Tier* first_choice() {
  const char* asked = std::getenv("MLA_OPT_CPU_TIER");
  const Tier* tier = asked && *asked ? find(asked) : nullptr;
  return tier ? tier : find(nullptr);
}

std::atomic<const Tier*>& chosen() {
  static std::atomic<const Tier*> tier{first_choice()};
  return tier;
}

std::string names() {
  std::string joined;
  for (const Tier* tier : kTiers)
    if (tier->runs_here()) joined += (joined.empty() ? "" : " ") + std::string(tier->name);
  return joined;
}

}  // namespace

const Tier& current_tier() { return *chosen().load(std::memory_order_relaxed); }

}  // namespace mla_opt

extern "C" const char* mla_opt_cpu_tiers(void) {
  static const std::string joined = mla_opt::names();
  return joined.c_str();
}

extern "C" const char* mla_opt_cpu_tier(void) { return mla_opt::current_tier().name; }

extern "C" int mla_opt_use_cpu_tier(const char* name) {
  const mla_opt::Tier* tier = mla_opt::find(name);
  if (!tier) return 1;
  mla_opt::chosen().store(tier, std::memory_order_relaxed);
  return 0;
}
