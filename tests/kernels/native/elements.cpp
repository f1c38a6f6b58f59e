// Every float16, bfloat16 and float8e4m3fn, and every rounding to them, against arithmetic on doubles.
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

// Every float8e4m3fn by its definition: 4 bits of exponent, 3 of fraction, no infinity.
double defined_e4m3(uint32_t bits) {
  const int exponent = static_cast<int>(bits >> 3 & 15u);
  const double rest = static_cast<double>(bits & 7u) / 8.0;
  if ((bits & 0x7fu) == 0x7fu) return NAN;
  return exponent ? std::ldexp(1.0 + rest, exponent - 7) : std::ldexp(rest, -6);
}

bool check_e4m3() {
  bool good = std::isnan(to_float(Float8E4M3FN{0x7f})) &&
              converted<Float8E4M3FN>(NAN).bits % 0x80u == 0x7fu &&
              converted<Float8E4M3FN>(INFINITY).bits == 0x7eu &&
              converted<Float8E4M3FN>(-1e30f).bits == 0xfeu;
  for (uint32_t bits = 0; bits < 0x7fu; ++bits)
    for (const uint32_t sign : {0u, 0x80u}) {
      const auto code = static_cast<uint8_t>(bits | sign);
      const double meant = sign ? -defined_e4m3(bits) : defined_e4m3(bits);
      bool exact = same(meant, static_cast<double>(to_float(Float8E4M3FN{code}))) &&
                   converted<Float8E4M3FN>(static_cast<float>(meant)).bits == code;
      if (bits < 0x7eu) {
        const auto middle = static_cast<float>((defined_e4m3(bits) + defined_e4m3(bits + 1)) / 2.0);
        const float by = sign ? -1.0f : 1.0f;
        const uint32_t even = bits % 2 ? bits + 1 : bits;
        exact = exact &&
                converted<Float8E4M3FN>(by * std::nextafter(middle, 0.0f)).bits == code &&
                converted<Float8E4M3FN>(by * middle).bits == (even | sign) &&
                converted<Float8E4M3FN>(by * std::nextafter(middle, 1e9f)).bits == ((bits + 1) | sign);
      }
      if (!exact) std::printf("float8e4m3fn %02x\n", static_cast<unsigned>(code));
      good = good && exact;
    }
  return good;
}

}  // namespace

int main() {
  const bool small = check_e4m3();
  const bool half = check<Half>("float16", 10), brain = check<BFloat16>("bfloat16", 7);
  return half && brain && small ? 0 : 1;
}
