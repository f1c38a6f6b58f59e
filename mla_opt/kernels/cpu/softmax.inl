// The running softmax of one vector of query rows. Included by flash.inl.

// Turns scores into probabilities up to the factor 1 / sum, and tells by `keep` what the output so
// far is to be multiplied by.
void soften(float* scores, int64_t stride, int keys, float* maximum, float* sum, float* keep) {
  const Vector before = load(maximum);
  Vector highest = before;
  for (int key = 0; key < keys; ++key) highest = larger(load(scores + key * stride), highest);
  // Where nothing may be seen yet the maximum is -inf, and -inf - -inf would be NaN.
  const Vector base = highest == broadcast(kMinusInfinity) ? Vector{} : highest;
  // The difference first: a bias may be the lowest finite number, which no factor may reach.
  const Vector kept = exp2_nonpositive((before - base) * kLog2e);
  Vector total = load(sum) * kept;
  for (int key = 0; key < keys; ++key) {
    const Vector probability = exp2_nonpositive((load(scores + key * stride) - base) * kLog2e);
    store(scores + key * stride, probability);
    total += probability;
  }
  store(maximum, highest);
  store(sum, total);
  store(keep, kept);
}
