// Every float16 and bfloat16, and every rounding to them, against arithmetic on doubles.
#include <cmath>
#include <cstdio>
#include <initializer_list>

#include "../../../mla_opt/kernels/cpu/element.h"

using namespace mla_opt;

namespace {

// A 16-bit type with so many bits of fraction.
template <class T>
double defined(uint32_t bits, int fraction) {
  const int exponents = (1 << (15 - fraction)) - 1, bias = exponents / 2;
  const int exponent = static_cast<int>(bits >> fraction) & exponents;
  const double rest = static_cast<double>(bits & ((1u << fraction) - 1)) * std::ldexp(1.0, -fraction);
  const double sign = bits & 0x8000u ? -1.0 : 1.0;
  if (exponent == exponents) return rest == 0.0 ? sign * INFINITY : NAN;
  if (exponent == 0) return sign * std::ldexp(rest, 1 - bias);
  return sign * std::ldexp(1.0 + rest, exponent - bias);
}

bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

template <class T>
uint32_t rounded(float value) {
  return converted<T>(value).bits;
}

// Between a number and the next one: below the middle, the middle, and above it.
template <class T>
bool rounds_well(uint32_t bits, int fraction) {
  const double low = defined<T>(bits, fraction), high = defined<T>(bits + 1, fraction);
  // Rounding to infinity begins where the next number would, if there were one.
  const double next = std::isinf(high) ? 2.0 * low - defined<T>(bits - 1, fraction) : high;
  const auto middle = static_cast<float>(low / 2.0 + next / 2.0);
  const uint32_t even = bits % 2 ? bits + 1 : bits;
  for (const float sign : {1.0f, -1.0f}) {
    const uint32_t mark = sign < 0.0f ? 0x8000u : 0u;
    if (rounded<T>(sign * std::nextafter(middle, 0.0f)) != (bits | mark) ||
        rounded<T>(sign * middle) != (even | mark) ||
        rounded<T>(sign * std::nextafter(middle, INFINITY)) != ((bits + 1) | mark))
      return false;
  }
  return true;
}

template <class T>
bool check(const char* name, int fraction) {
  bool good = true;
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const T value{static_cast<uint16_t>(bits)};
    const double meant = defined<T>(bits, fraction);
    const float seen = to_float(value);
    const bool kept = std::isnan(meant) ? std::isnan(to_float(converted<T>(seen)))
                                        : rounded<T>(seen) == bits;
    const bool finite = bits < 0x8000u && std::isfinite(meant);
    if (same(meant, static_cast<double>(seen)) && kept &&
        (!finite || rounds_well<T>(bits, fraction)))
      continue;
    std::printf("%s %04x\n", name, bits);
    good = false;
  }
  return good;
}

}  // namespace

int main() {
  const bool half = check<Half>("float16", 10), brain = check<BFloat16>("bfloat16", 7);
  return half && brain ? 0 : 1;
}
