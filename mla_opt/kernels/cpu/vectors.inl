// Vectors of LANES floats as the compiler's own vector types: one source for every instruction set.
// Included by each tier, inside its own namespace.

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Integers __attribute__((vector_size(LANES * 4)));
typedef float UnalignedVector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr float kMinusInfinity = -__builtin_inff();
constexpr float kLog2e = 1.44269504088896341f;

inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
inline Vector broadcast(float value) { return value - Vector{}; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// 2^x for x <= 0, relative error below 2e-7; exactly 0 from -126 down, so for -inf as well.
inline Vector exp2_nonpositive(Vector x) {
  const Vector lowest = broadcast(-126.0f);
  const Vector clamped = larger(x, lowest);
  // Adding 1.5 * 2^23 leaves the nearest integer in the lowest bits of the sum.
  const Vector shift = broadcast(12582912.0f);
  const Vector shifted = clamped + shift;
  const Vector fraction = clamped - (shifted - shift);
  Vector power = broadcast(1.5403530e-4f);
  power = power * fraction + broadcast(1.3333558e-3f);
  power = power * fraction + broadcast(9.6181291e-3f);
  power = power * fraction + broadcast(5.5504109e-2f);
  power = power * fraction + broadcast(2.4022651e-1f);
  power = power * fraction + broadcast(6.9314718e-1f);
  power = power * fraction + broadcast(1.0f);
  const Integers exponent = reinterpret_cast<Integers>(shifted) << 23;
  const Vector scaled = reinterpret_cast<Vector>(reinterpret_cast<Integers>(power) + exponent);
  return x > lowest ? scaled : Vector{};
}

inline __attribute__((always_inline)) Vector as_floats(Integers bits) {
  return reinterpret_cast<Vector>(bits);
}

// Floats of MAGNITUDE_BITS and a sign, whose exponent is all ones from ONES on; the shift puts their
// significand where that of a float is.
// Their exponent is too small; a multiplication mends it, and normalises subnormal numbers.
template <int ONES, int MAGNITUDE_BITS, int SHIFT>
inline __attribute__((always_inline)) Vector small_floats(Integers bits, float factor) {
  const Integers magnitude = bits & ((1 << MAGNITUDE_BITS) - 1);
  const Integers sign = (bits >> MAGNITUDE_BITS & 1) << 31;
  const Vector number = as_floats(magnitude << SHIFT) * factor;
  // Infinity, and what is none: all ones in the exponent.
  const Integers beyond = magnitude << SHIFT | 0x7f800000;
  const Integers chosen =
      magnitude >= ONES ? beyond : reinterpret_cast<Integers>(number);
  return as_floats(chosen | sign);
}

// Not the standard library's: templates of another namespace that are compiled for a tier's
// instructions could become the copy that the linker keeps for everyone.
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }
inline void fill(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}
template <int N>
struct Size {
  static constexpr int value = N;
};

// Rounded up to full vectors, and to full cache lines.
inline int64_t padded(int64_t count) { return (count + LANES - 1) / LANES * LANES; }
inline int64_t in_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

int64_t partial_stride(const Problem& p) { return padded(p.kv_lora_rank); }

// Keys of the block behind one, and whether that one is itself behind another.
struct Next {
  bool follows;
  int keys;
};

// The rows of the next block, brought nearer while this one is multiplied: the score tiles read
// from many rows at once, too many streams for the processor to foresee. A line at a time: more than
// that, and what is multiplied now has to wait behind what is needed later.
struct Ahead {
  const char* at = nullptr;
  const char* end = nullptr;
  const char* then = nullptr;  // as many bytes as there were, once more
  int64_t bytes = 0;

  // Into the second-level cache (2), or into both (3).
  template <int LOCALITY = 2>
  inline __attribute__((always_inline)) void fetch() {
    if (at >= end) {
      if (!then) return;
      at = then;
      end = then + bytes;
      then = nullptr;
    }
    __builtin_prefetch(at, 0, LOCALITY);
    at += kLine;
  }

  int64_t lines() const { return (end - at + (then ? bytes : 0) + kLine - 1) / kLine; }

  static constexpr int kLine = 64;
};

// Of rows in two halves both; else what holds c_kv, as k_pe is little beside it.
Ahead ahead_of(const Problem& p, const Segment& rows, int64_t first, int64_t count) {
  if (count <= 0) return {};
  const auto size = static_cast<int64_t>(element_size(rows.type));
  const int64_t row = rows.front_stride * size, before = (first - rows.first) * row;
  const char* start = rows.front + before;
  const bool is_halves = p.even_cache && rows.front_stride == front_width(p);
  return {start, start + count * row, is_halves ? rows.back + before : nullptr, count * row};
}
