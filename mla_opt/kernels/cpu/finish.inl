// From partial results to output rows. Included by flash.inl.

// The weight of a partial result of this maximum among ones of maximum `highest`, natural units.
inline float weight_of(float maximum, float highest) {
  return maximum == kMinusInfinity ? 0.0f : expf(maximum - highest);
}

template <class T>
void write_row(const float* row, float factor, T* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) from_float(row[i] * factor, to[i]);
}

void write_output(const Problem& p, const float* row, float factor, int64_t offset) {
  const int64_t rank = p.kv_lora_rank;
  if (p.type == MLA_OPT_FLOAT32)
    write_row(row, factor, static_cast<float*>(p.output) + offset, rank);
  else if (p.type == MLA_OPT_FLOAT16)
    write_row(row, factor, static_cast<Half*>(p.output) + offset, rank);
  else
    write_row(row, factor, static_cast<BFloat16*>(p.output) + offset, rank);
}

inline float sink_of(const Problem& p, int64_t sequence, int64_t m) {
  if (!p.sink) return kMinusInfinity;
  const int64_t head = sequence * p.sink_stride + m % p.heads;
  if (p.type == MLA_OPT_FLOAT32) return static_cast<const float*>(p.sink)[head];
  if (p.type == MLA_OPT_FLOAT16) return to_float(static_cast<const Half*>(p.sink)[head]);
  return to_float(static_cast<const BFloat16*>(p.sink)[head]);
}

// The first partial's row becomes the sum of all of them.
void finish_row(const Problem& p, const Tile& tile, const Partial& first, int64_t count,
                size_t stride, int64_t row) {
  const int64_t m = tile.first + row, width = padded(p.kv_lora_rank);
  const float sink = sink_of(p, tile.sequence, m);
  float highest = sink;
  for (int64_t i = 0; i < count; ++i) {
    const float maximum = first.maximum[i * stride + row];
    highest = highest > maximum ? highest : maximum;
  }
  float total = sink == kMinusInfinity ? 0.0f : expf(sink - highest);
  float* sum = first.output + row * width;
  for (int64_t i = 0; i < count; ++i) {
    const float weight = weight_of(first.maximum[i * stride + row], highest);
    const float* output = first.output + i * stride + row * width;
    total += weight * first.sum[i * stride + row];
    if (i == 0 && weight == 1.0f) continue;
    for (int64_t c = 0; c < width; c += LANES) {
      const Vector before = i ? load(sum + c) : Vector{};
      store(sum + c, before + load(output + c) * weight);
    }
  }
  write_output(p, sum, total == 0.0f ? 0.0f : 1.0f / total,
               query_offset(p, tile.sequence, m, p.kv_lora_rank));
}

void finish(const Problem& p, const Tile& tile, const Partial& first, int64_t count,
            size_t stride) {
  for (int64_t row = 0; row < tile.count; ++row)
    finish_row(p, tile, first, count, stride, row);
}
