// What a query row may not see, and what is added to what it sees. Included by flash.inl.

// Elements from the bias of key 0 of the tile's sequence to that of a query row.
inline int64_t bias_row(const Problem& p, const Tile& tile, int64_t row) {
  const int64_t m = tile.first + row;
  return tile.sequence * p.bias_strides[0] + m % p.heads * p.bias_strides[1] +
         m / p.heads * p.bias_strides[2];
}

struct BooleanBias {
  static float value(const void* bias, int64_t at) {
    return static_cast<const uint8_t*>(bias)[at] ? 0.0f : kMinusInfinity;
  }
};

template <class T>
struct AdditiveBias {
  static float value(const void* bias, int64_t at) {
    return to_float(static_cast<const T*>(bias)[at]);
  }
};

// Adds the bias of one vector of query rows. Rows of one position mostly share theirs.
template <class Bias>
void add_bias(const Problem& p, const Tile& tile, int64_t row, int64_t first_key, int keys, float* scores,
              int64_t stride, float* gathered) {
  const int64_t step = p.bias_strides[3], first = first_key * step;
  const int64_t lanes = least(LANES, tile.count - row);
  bool shared = true;
  int64_t start[LANES];
  for (int64_t lane = 0; lane < LANES; ++lane) {
    start[lane] = bias_row(p, tile, row + least(lane, lanes - 1)) + first;
    shared = shared && start[lane] == start[0];
  }
  if (shared) {
    for (int key = 0; key < keys; ++key) {
      const Vector bias = broadcast(Bias::value(p.bias, start[0] + key * step));
      store(scores + key * stride, load(scores + key * stride) + bias);
    }
    return;
  }
  for (int64_t lane = 0; lane < LANES; ++lane)
    for (int key = 0; key < keys; ++key)
      gathered[key * LANES + lane] = Bias::value(p.bias, start[lane] + key * step);
  for (int key = 0; key < keys; ++key)
    store(scores + key * stride, load(scores + key * stride) + load(gathered + key * LANES));
}

// Whether a row of the tile sees any of the keys.
template <class Bias>
bool is_seen_by(const Problem& p, const Tile& tile, int64_t row, int64_t first_key, int64_t keys) {
  const int64_t step = p.bias_strides[3], start = bias_row(p, tile, row) + first_key * step;
  bool seen = false;
  if (step == 1)
    for (int64_t key = 0; key < keys; ++key) seen |= Bias::value(p.bias, start + key) != kMinusInfinity;
  else
    for (int64_t key = 0; key < keys; ++key)
      seen |= Bias::value(p.bias, start + key * step) != kMinusInfinity;
  return seen;
}

// Whether any row does. The last one sees most, as a rule; heads of a position mostly share their bias.
template <class Bias>
bool is_seen(const Problem& p, const Tile& tile, int64_t first_key, int64_t keys) {
  const int64_t step = p.bias_strides[1] == 0 ? p.heads : 1;
  for (int64_t row = tile.count - 1; row > 0; row -= step)
    if (is_seen_by<Bias>(p, tile, row, first_key, keys)) return true;
  return is_seen_by<Bias>(p, tile, 0, first_key, keys);
}

// Calls use(bias) with the type of the bias.
template <class Use>
auto with_bias(const Problem& p, Use use) {
  if (p.bias_type == MLA_OPT_BOOL) return use(BooleanBias{});
  if (p.bias_type == MLA_OPT_FLOAT32) return use(AdditiveBias<float>{});
  if (p.bias_type == MLA_OPT_FLOAT16) return use(AdditiveBias<Half>{});
  return use(AdditiveBias<BFloat16>{});
}

// Whether the bias hides keys from all rows of a tile: what is above the diagonal, or padding.
bool hides(const Problem& p, const Tile& tile, int64_t first_key, int64_t keys) {
  if (!p.bias) return false;
  return with_bias(p, [&](auto bias) { return !is_seen<decltype(bias)>(p, tile, first_key, keys); });
}

// Sets the scores of keys behind a row's last one to -inf.
void cut(const Problem& p, const Tile& tile, int64_t row, int64_t first_key, int keys, float* scores,
         int64_t stride) {
  const int64_t valid = valid_len(p, tile.sequence);
  if (first_key + keys - 1 <= last_key(p, valid, tile.first + row)) return;
  Integers last;
  for (int lane = 0; lane < LANES; ++lane) {
    const int64_t own = last_key(p, valid, tile.first + row + lane) - first_key;
    last[lane] = static_cast<int32_t>(greatest(-1, least(own, keys)));
  }
  for (int key = 0; key < keys; ++key) {
    const Vector score = load(scores + key * stride);
    store(scores + key * stride, last >= key ? score : broadcast(kMinusInfinity));
  }
}

void mask(const Problem& p, const Tile& tile, int64_t row, int64_t first_key, int keys, float* scores,
          int64_t stride, float* gathered) {
  if (p.bias)
    with_bias(p, [&](auto bias) {
      add_bias<decltype(bias)>(p, tile, row, first_key, keys, scores, stride, gathered);
    });
  if (p.causal) cut(p, tile, row, first_key, keys, scores, stride);
}
