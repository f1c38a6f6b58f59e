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
  if (p.bias) {
    if (p.bias_type == MLA_OPT_BOOL)
      add_bias<BooleanBias>(p, tile, row, first_key, keys, scores, stride, gathered);
    else if (p.bias_type == MLA_OPT_FLOAT32)
      add_bias<AdditiveBias<float>>(p, tile, row, first_key, keys, scores, stride, gathered);
    else if (p.bias_type == MLA_OPT_FLOAT16)
      add_bias<AdditiveBias<Half>>(p, tile, row, first_key, keys, scores, stride, gathered);
    else
      add_bias<AdditiveBias<BFloat16>>(p, tile, row, first_key, keys, scores, stride, gathered);
  }
  if (p.causal) cut(p, tile, row, first_key, keys, scores, stride);
}
