// Random problems, legal and not, through the host's checks and the kernel, against the definition.
//
//   fuzz SEED FIRST COUNT [scale | buffer | race]
//   fuzz
//
// Runs problems FIRST .. FIRST + COUNT of a seed, each as good as alone, on every tier of the
// machine. The last word breaks something on purpose, which must not pass. Without any word it says
// which tiers those are.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <thread>

#include "../../../mla_opt/kernels/cpu/quantized_rows.h"
#include "allocations.h"
#include "definition.h"
#include "hosts.h"
#include "random_multi_head.h"
#include "random_nbits.h"

using namespace mla_opt;

namespace {

std::string sabotage;

struct Outcome {
  bool done = false;
  bool allocated_when_warm = false;
  mla_opt_failure failure{};
  Tensor output, new_cache, new_rope_cache;
  std::unique_ptr<char[]> shorter;
};

constexpr char kUntouched = 0x5a;

Tensor make_output(int32_t type, const Shape& shape) {
  Tensor tensor = make_tensor(type, {shape.dims, shape.dims + 4});
  std::memset(tensor.data.get(), kUntouched, tensor.bytes);
  return tensor;
}

void read_operands(const Case& problem, Operand (&operands)[kInputCount]) {
  for (int i = 0; i < kInputCount; ++i) {
    const Tensor& input = problem.input[i];
    if (!input.given()) continue;
    operands[i].given = true;
    operands[i].data = input.data.get();
    operands[i].type = input.type;
    operands[i].rank = static_cast<int64_t>(input.dims.size());
    for (int64_t axis = 0; axis < std::min<int64_t>(operands[i].rank, kMostDims); ++axis)
      operands[i].dims[axis] = input.dims[static_cast<size_t>(axis)];
  }
}

// One byte less than the query has.
void shorten(const Tensor& query, Operand& operand, Outcome& outcome) {
  if (query.bytes == 0) return;
  outcome.shorter = std::make_unique<char[]>(query.bytes - 1);
  std::memcpy(outcome.shorter.get(), query.data.get(), query.bytes - 1);
  operand.data = outcome.shorter.get();
}

// In place: the buffers are the outputs; copies of them, so that the case stays what it was.
void alias_buffers(const Case& problem, mla_opt_latent_attention& p, Outcome& outcome) {
  outcome.new_cache = copy_of(problem.input[kCache]);
  p.cache = p.new_cache = outcome.new_cache.data.get();
  if (!problem.has(kRopeCache)) return;
  outcome.new_rope_cache = copy_of(problem.input[kRopeCache]);
  p.rope_cache = p.new_rope_cache = outcome.new_rope_cache.data.get();
}

// What the custom operator does around the kernel.
Outcome run(const Case& problem, Host& host, bool alias) {
  Outcome outcome;
  Operand operands[kInputCount];
  mla_opt_latent_attention p;
  OutputShapes shapes;
  read_operands(problem, operands);
  if (sabotage == "buffer") shorten(problem.input[kQuery], operands[kQuery], outcome);
  if (!make_problem(operands, problem.attributes, p, shapes, outcome.failure)) return outcome;
  outcome.output = make_output(p.type, shapes.shape[kOutput]);
  p.output = outcome.output.data.get();
  if (shapes.has[kNewCache] && alias && p.past_len) {
    alias_buffers(problem, p, outcome);
  } else if (shapes.has[kNewCache]) {
    outcome.new_cache = make_output(p.cache_type, shapes.shape[kNewCache]);
    p.new_cache = outcome.new_cache.data.get();
    if (shapes.has[kNewRopeCache]) {
      outcome.new_rope_cache = make_output(type_beside(p.cache_type), shapes.shape[kNewRopeCache]);
      p.new_rope_cache = outcome.new_rope_cache.data.get();
    }
  }
  if (sabotage == "scale") p.scale *= 1.1;
  outcome.done = mla_opt_latent_attention_run(&p, run_tasks, &host, &outcome.failure) == 0;
  // Once more where all was done by this thread, whose memory is now there.
  if (!outcome.done || host.order != Order::kForwards) return outcome;
  const long before = allocations();
  mla_opt_latent_attention_run(&p, run_tasks, &host, &outcome.failure);
  outcome.allocated_when_warm = allocations() != before;
  return outcome;
}

// Relative to the largest number of the output. The bfloat16 tiers round queries as well.
double tolerance(const Case& problem) {
  const int32_t type = problem.input[kQuery].type;
  const int32_t kept = problem.has(kCache) ? problem.input[kCache].type : type;
  if (type == MLA_OPT_BFLOAT16 || kept == MLA_OPT_BFLOAT16 || is_quantized(kept))
    return 3e-2;
  if (type == MLA_OPT_FLOAT16) return 2e-3;
  return type == MLA_OPT_FLOAT64 ? 1e-12 : 1e-5;
}

std::string compare_output(const Case& problem, const Expected& expected, const Tensor& output) {
  if (output.count() != static_cast<int64_t>(expected.output.size()))
    return "output has another size";
  double largest = 0.0;
  for (const double value : expected.output) largest = std::max(largest, std::fabs(value));
  for (size_t i = 0; i < expected.output.size(); ++i) {
    const double actual = value_at(output, static_cast<int64_t>(i));
    if (std::fabs(actual - expected.output[i]) <= tolerance(problem) * largest) continue;
    std::ostringstream text;
    text << "output[" << i << "] is " << actual << ", expected " << expected.output[i];
    return text.str();
  }
  return "";
}

std::string compare_cache(const char* name, const Tensor& expected, const Tensor& actual) {
  if (expected.dims != actual.dims) return std::string(name) + " has other dims";
  if (!expected.given()) return "";
  const bool same = std::memcmp(expected.data.get(), actual.data.get(), expected.bytes) == 0;
  return same ? "" : std::string(name) + " has other bytes";
}

std::string judge_legal(const Case& problem, const Outcome& outcome) {
  if (!outcome.done) return std::string("refused: ") + outcome.failure.message;
  if (outcome.allocated_when_warm) return "memory was allocated once warm";
  const Expected expected = expected_of(problem);
  std::string verdict = compare_cache("new_cache", expected.new_cache, outcome.new_cache);
  if (verdict.empty())
    verdict = compare_cache("new_rope_cache", expected.new_rope_cache, outcome.new_rope_cache);
  return verdict.empty() ? compare_output(problem, expected, outcome.output) : verdict;
}

bool untouched(const Tensor& output) {
  for (size_t i = 0; i < output.bytes; ++i)
    if (output.data[i] != kUntouched) return false;
  return true;
}

bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.bytes == b.bytes && (a.bytes == 0 || std::memcmp(a.data.get(), b.data.get(), a.bytes) == 0);
}

std::string judge_refusal(const Case& problem, const Outcome& outcome, bool alias) {
  if (outcome.done) return "not refused";
  if (!std::strstr(outcome.failure.message, problem.fault.c_str()))
    return std::string("another message: ") + outcome.failure.message;
  const bool buffer = alias && problem.has(kPastLen) && outcome.new_cache.given();
  if (!untouched(outcome.output)) return "output was written";
  if (buffer ? !same_bytes(outcome.new_cache, problem.input[kCache]) : !untouched(outcome.new_cache))
    return "new_cache was written";
  return "";
}

std::string judge_failing_host(const Outcome& outcome, const Host& host) {
  if (!host.called) return outcome.done ? "" : "failed before the host did";
  if (outcome.done) return "the host's failure was lost";
  return outcome.failure.host_error == &host ? "" : "the host's error is not handed back";
}

Host draw_host(Dice& dice) {
  Host host;
  host.order = sabotage == "race" ? Order::kThreads : static_cast<Order>(dice.below(4));
  if (sabotage.empty() && dice.one_in(20)) host.order = Order::kFailing;
  host.threads = 2 + static_cast<int>(dice.below(3));
  host.races = sabotage == "race";
  return host;
}

std::vector<std::string> tiers() {
  std::istringstream words(mla_opt_cpu_tiers());
  std::vector<std::string> names;
  for (std::string name; words >> name;) names.push_back(name);
  return names;
}

std::string run_one(uint64_t seed, uint64_t index) {
  Dice dice(seed, index);
  if (sabotage.empty() && index / 2 % 3 == 0) {
    Host host = draw_host(dice);
    return run_multi_head(dice, host);
  }
  if (sabotage.empty() && index / 2 % 6 == 1 && multiplies_nbits()) {
    Host host = draw_host(dice);
    return run_nbits(dice, host);
  }
  Case problem = legal_case(dice);
  if (sabotage.empty() && dice.one_in(4)) break_case(dice, problem);
  Host host = draw_host(dice);
  const bool alias = dice.one_in(2);
  const Outcome outcome = run(problem, host, alias);
  std::string verdict;
  if (!problem.fault.empty())
    verdict = judge_refusal(problem, outcome, alias);
  else if (host.order == Order::kFailing)
    verdict = judge_failing_host(outcome, host);
  else
    verdict = judge_legal(problem, outcome);
  return verdict.empty() ? "" : verdict + "\n  " + described(problem);
}

// Two problems at the same time, as two sessions would have them.
bool run_pair(uint64_t seed, uint64_t index, const std::string& tier) {
  std::string verdicts[2];
  std::thread other([&] { verdicts[1] = run_one(seed, index + 1); });
  verdicts[0] = run_one(seed, index);
  other.join();
  for (uint64_t i = 0; i < 2; ++i)
    if (!verdicts[i].empty())
      std::printf("seed %llu, problem %llu, tier %s: %s\n", static_cast<unsigned long long>(seed),
                  static_cast<unsigned long long>(index + i), tier.c_str(), verdicts[i].c_str());
  return verdicts[0].empty() && verdicts[1].empty();
}

}  // namespace

int main(int count, char** words) {
  if (count == 1) return std::puts(mla_opt_cpu_tiers()) < 0;
  if (count < 4) return 2;
  const uint64_t seed = std::strtoull(words[1], nullptr, 10);
  const uint64_t first = std::strtoull(words[2], nullptr, 10);
  const uint64_t end = first + std::strtoull(words[3], nullptr, 10);
  if (count > 4) sabotage = words[4];
  bool good = true;
  const std::vector<std::string> names = tiers();
  for (uint64_t index = first; index < end; index += 2) {
    const std::string& tier = names[index / 2 % names.size()];
    mla_opt_use_cpu_tier(tier.c_str());
    good = run_pair(seed, index, tier) && good;
  }
  return good ? 0 : 1;
}
