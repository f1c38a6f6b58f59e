// Times the kernel itself, on one thread and on several, beside the multiply-adds of the same core.
//
//   core LIBRARY float32|float16|bfloat16|int8|fp8 HEADS KEYS THREADS ROUNDS
//
// One new token attends from HEADS heads to KEYS rows of 512 + 64 numbers in a buffer; to rows of 8 bits
// from queries of float32. Rounds take
// turns: the core's rate, the kernel on one thread, the rate of THREADS threads, the kernel on them.
// Prints one JSON object: seconds a call of each round, and floating-point operations a second.
#include <dlfcn.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../../mla_opt/kernels/cpu/quantized_rows.h"
#include "peak.h"
#include "pool.h"

using namespace mla_opt;

namespace {

constexpr int64_t kRank = 512, kRope = 64, kWidth = kRank + kRope;
constexpr double kTurn = 0.06;  // seconds that a turn lasts at least
constexpr long kRepeats = 200000;  // multiply-adds of a slice: some milliseconds

struct Library {
  decltype(&mla_opt_latent_attention_run) run;
  decltype(&mla_opt_cpu_tier) tier;
};

template <class Function>
Function symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found) return reinterpret_cast<Function>(found);
  std::fprintf(stderr, "%s\n", dlerror());
  std::exit(2);
}

Library open(const char* path) {
  void* library = dlopen(path, RTLD_NOW);
  if (library)
    return {symbol<decltype(Library::run)>(library, "mla_opt_latent_attention_run"),
            symbol<decltype(Library::tier)>(library, "mla_opt_cpu_tier")};
  std::fprintf(stderr, "%s\n", dlerror());
  std::exit(2);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Processor time of this thread.
double own_time() {
  timespec time;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Memory that begins with a cache line and, where it is large, lies in large pages: as LatentCache has
// it, by NumPy.
struct Memory {
  std::unique_ptr<void, decltype(&std::free)> start{nullptr, std::free};

  void resize(size_t bytes) {
    constexpr size_t kLine = 64, kLargePage = 1 << 21, kLarge = 1 << 22;
    const size_t step = bytes < kLarge ? kLine : kLargePage;
    bytes = (bytes + step - 1) / step * step;
    start.reset(std::aligned_alloc(step, bytes));
#if defined(MADV_HUGEPAGE)
    if (bytes >= kLarge) madvise(start.get(), bytes, MADV_HUGEPAGE);
#endif
  }

  char* data() const { return static_cast<char*>(start.get()); }
};

// One token on a buffer of rows, of random numbers.
struct Step {
  Memory query, latent, cache, rope_cache, output;
  int32_t past_len;
  mla_opt_latent_attention problem{};

  Step(int32_t cache_type, int64_t heads, int64_t keys)
      : past_len(static_cast<int32_t>(keys - 1)) {
    const int32_t type = is_quantized(cache_type) ? int32_t{MLA_OPT_FLOAT32} : cache_type;
    const auto size = static_cast<int64_t>(element_size(type));
    std::mt19937 random(1);
    fill(query, type, heads * kWidth, random);
    fill(latent, type, kWidth, random);
    if (is_quantized(cache_type))
      fill_codes(cache_type, keys, random);
    else
      fill(cache, type, keys * kWidth, random);
    output.resize(static_cast<size_t>(heads * kRank * size));
    problem.struct_size = sizeof problem;
    problem.type = type;
    problem.cache_type = cache_type;
    problem.causal = 1;
    problem.batch = problem.query_len = problem.new_len = 1;
    problem.heads = heads;
    problem.cache_len = keys;
    problem.kv_lora_rank = kRank;
    problem.rope_dim = kRope;
    problem.scale = 1 / 13.856406460551018;  // the square root of 128 + 64
    problem.query = query.data();
    problem.latent = latent.data();
    problem.cache = problem.new_cache = cache.data();
    if (is_quantized(cache_type))
      problem.rope_cache = problem.new_rope_cache = rope_cache.data();
    problem.past_len = &past_len;
    problem.output = output.data();
  }

  void fill_codes(int32_t type, int64_t keys, std::mt19937& random) {
    std::vector<float> row(static_cast<size_t>(kWidth));
    std::uniform_real_distribution<float> values(-1.0f, 1.0f);
    const int64_t width = width_beside(type, kRank, kRope);
    cache.resize(static_cast<size_t>(keys * kRank));
    rope_cache.resize(static_cast<size_t>(keys * width) * sizeof(BFloat16));
    auto* codes = reinterpret_cast<uint8_t*>(cache.data());
    auto* beside = reinterpret_cast<BFloat16*>(rope_cache.data());
    for (int64_t key = 0; key < keys; ++key) {
      for (float& number : row) number = values(random);
      quantize_row(row.data(), type, kRank, kRope, codes + key * kRank, beside + key * width);
    }
  }

  static void fill(Memory& tensor, int32_t type, int64_t count, std::mt19937& random) {
    std::uniform_real_distribution<float> values(-1.0f, 1.0f);
    tensor.resize(static_cast<size_t>(count) * element_size(type));
    for (int64_t i = 0; i < count; ++i) {
      const float value = values(random);
      if (type == MLA_OPT_FLOAT32)
        reinterpret_cast<float*>(tensor.data())[i] = value;
      else if (type == MLA_OPT_FLOAT16)
        reinterpret_cast<Half*>(tensor.data())[i] = converted<Half>(value);
      else
        reinterpret_cast<BFloat16*>(tensor.data())[i] = converted<BFloat16>(value);
    }
  }
};

double operations_of(Multiply multiply) {
  static const double done = multiply(kRepeats);
  return done;
}

// Operations a second of one thread or of all together: the most of any slice of a turn, each as long
// as a fast call of the kernel, so that what disturbs the one disturbs the other.
double rate(Pool& pool, bool all, Multiply multiply) {
  const auto clock = all ? now : own_time;
  const double operations = operations_of(multiply) * (all ? pool.threads() : 1);
  double best = 0.0;
  for (const double start = now(); now() - start < kTurn;) {
    const double before = clock();
    if (all)
      pool.everywhere([&] { multiply(kRepeats); });
    else
      multiply(kRepeats);
    best = std::max(best, operations / (clock() - before));
  }
  return best;
}

// Seconds of one call: the fastest of a turn. On one thread these are of the processor's time, so
// that a machine that is shared takes nothing from it but what it takes from the caches.
double call(const Library& library, Pool& pool, bool all, const Step& step) {
  const auto clock = all ? now : own_time;
  const auto parallel_for = all ? Pool::on_all : Pool::on_one;
  double best = 1e30;
  for (const double start = now(); now() - start < kTurn;) {
    mla_opt_failure failure;
    const double before = clock();
    if (library.run(&step.problem, parallel_for, &pool, &failure)) {
      std::fprintf(stderr, "%s\n", failure.message);
      std::exit(1);
    }
    best = std::min(best, clock() - before);
  }
  return best;
}

int32_t type_of(const std::string& name) {
  if (name == "float16") return MLA_OPT_FLOAT16;
  if (name == "int8") return MLA_OPT_INT8;
  if (name == "fp8") return MLA_OPT_FLOAT8E4M3FN;
  return name == "bfloat16" ? MLA_OPT_BFLOAT16 : MLA_OPT_FLOAT32;
}

void print(const char* name, const std::vector<double>& values, const char* end) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < values.size(); ++i) std::printf("%s%.9g", i ? ", " : "", values[i]);
  std::printf("]%s", end);
}

}  // namespace

int main(int count, char** words) {
  if (count != 7) return 2;
  const Library library = open(words[1]);
  const int32_t type = type_of(words[2]);
  const int64_t heads = std::atoll(words[3]), keys = std::atoll(words[4]);
  const std::string tier = library.tier();
  const bool as_bfloat16 = is_quantized(type) && (tier == "amx" || tier == "avx512bf16");
  const Multiply multiply =
      multiply_of(tier.c_str(), type == MLA_OPT_BFLOAT16 || as_bfloat16);
  if (!multiply) {
    std::fprintf(stderr, "the tier %s multiplies no bfloat16\n", library.tier());
    return 2;
  }
  const Step step(type, heads, keys);
  std::vector<double> rates[2], seconds[2];
  Pool pool(std::atoi(words[5]));
  for (int round = 0; round < std::atoi(words[6]); ++round)
    for (const bool all : {false, true}) {
      rates[all].push_back(rate(pool, all, multiply));
      seconds[all].push_back(call(library, pool, all, step));
    }
  std::printf("{\"tier\": \"%s\", \"operations\": %.0f, ", library.tier(),
              2.0 * static_cast<double>(heads * keys * (kWidth + kRank)));
  print("rate_of_one", rates[0], ", ");
  print("rate_of_all", rates[1], ", ");
  print("seconds_on_one", seconds[0], ", ");
  print("seconds_on_all", seconds[1], "}\n");
  return 0;
}
