// Where the query rows and the keys of a sequence lie, and what each row may see.
#pragma once

#include "arguments.h"
#include "device.h"

namespace mla_opt::cuda {

// One sequence of a launch, with the lengths that only the device knows.
struct Sequence {
  int index;
  int past;   // valid rows of the cache before the new ones
  int valid;  // keys in all
};

MLA_OPT_DEVICE Sequence sequence_of(const Arguments& a, int index) {
  int past = a.cache_len;
  if (a.past_len) {
    const int given = a.past_len[index], most = a.cache_len - a.new_len;
    past = given < 0 ? 0 : given > most ? most : given;
  }
  return {index, past, past + a.new_len};
}

// Queries are taken position by position, the heads of one position side by side: neighbouring
// rows then share their mask. Row m is query position m / H of head m % H.
MLA_OPT_DEVICE int row_count(const Arguments& a) { return a.heads * a.query_len; }

// Elements before the query (or output) row m of a sequence, for rows of this width.
MLA_OPT_DEVICE int64_t row_offset(const Arguments& a, const Sequence& s, int m, int width) {
  const int position = m / a.heads, head = m - position * a.heads;
  return ((int64_t{s.index} * a.heads + head) * a.query_len + position) * width;
}

// Keys before this one may be seen by row m: 0 to valid.
MLA_OPT_DEVICE int visible_keys(const Arguments& a, const Sequence& s, int m) {
  if (!a.causal) return s.valid;
  const int end = s.valid - a.query_len + m / a.heads + 1;
  return end < 0 ? 0 : end;
}

// Elements before the bias of row m and key 0.
MLA_OPT_DEVICE int64_t bias_offset(const Arguments& a, const Sequence& s, int m) {
  const int position = m / a.heads, head = m - position * a.heads;
  return s.index * a.bias_strides[0] + head * a.bias_strides[1] + position * a.bias_strides[2];
}

// A latent row in two parts, wherever it is kept.
struct LatentRow {
  const char* c_kv;
  const char* k_pe;
};

template <int kRank, int kRope>
MLA_OPT_DEVICE LatentRow packed_row(const void* rows, int64_t row) {
  const char* start = static_cast<const char*>(rows) + row * (2 * (kRank + kRope));
  return {start, start + 2 * kRank};
}

// A key that is valid: from the cache, or new.
template <int kRank, int kRope>
MLA_OPT_DEVICE LatentRow row_of_key(const Arguments& a, const Sequence& s, int key) {
  if (key >= s.past)
    return packed_row<kRank, kRope>(a.latent, int64_t{s.index} * a.new_len + key - s.past);
  const int64_t row = int64_t{s.index} * a.cache_len + key;
  if (!a.rope_cache) return packed_row<kRank, kRope>(a.cache, row);
  return {static_cast<const char*>(a.cache) + row * (2 * kRank),
          static_cast<const char*>(a.rope_cache) + row * (2 * kRope)};
}

// The keys that one block takes.
struct Keys {
  int first;
  int end;
};

// Of `visible` keys the part of one split, in whole tiles: as equal as they can be, whatever the
// length; the last splits may get none.
MLA_OPT_DEVICE Keys keys_of_split(int visible, int split, int splits, int tile) {
  const int tiles = (visible + tile - 1) / tile;
  const int share = (tiles + splits - 1) / splits;
  const int64_t first = int64_t{split} * share * tile, end = first + int64_t{share} * tile;
  return {static_cast<int>(first < visible ? first : visible),
          static_cast<int>(end < visible ? end : visible)};
}

// The score of a key with its bias; minus infinity where the row may not attend to it.
template <class Element>
MLA_OPT_DEVICE float biased(const Arguments& a, float score, int64_t row_bias, int key) {
  const int64_t at = row_bias + key * a.bias_strides[3];
  if (a.bias_kind == BiasKind::kBoolean)
    return static_cast<const uint8_t*>(a.bias)[at] ? score : minus_infinity();
  return score + to_float(static_cast<const Element*>(a.bias)[at]);
}

}  // namespace mla_opt::cuda
