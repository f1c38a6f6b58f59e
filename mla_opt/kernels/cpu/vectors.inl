// Vectors of LANES floats as the compiler's own vector types: one source for every instruction set.
// Included by flash.inl, inside the namespace of a tier.

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
