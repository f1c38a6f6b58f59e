// Attention of a tile of query rows to a run of latent rows, in one pass over the rows.
//
// Included by each tier inside its own namespace, after LANES (floats in a vector), vectors.inl and
// one of the products_*.inl:
//
//   block of keys       rows [n, C + R]
//   scores  [n, rows]   query rows in lanes: rows are never transposed, only broadcast
//   softmax             lane by lane, with a running maximum and sum per query row
//   output  [rows, C]   the same rows, still in the cache, times the probabilities
//
// so a latent row is read from memory once, for keys and for values.
//
// What products_*.inl offers: query_bytes, pack_query, block_keys (at most kBlockKeys), Block, block_of,
// block_floats, score, add_values, settle. Both products bring the next block nearer while they multiply.

#include "masks.inl"
#include "softmax.inl"
#include "finish.inl"

// Floats between the scores of neighbouring keys: an odd number of cache lines, so that a column of
// scores lies in all sets of the first-level cache and not in a few.
inline int64_t score_stride(int64_t rows) {
  return in_lines(rows) / 16 % 2 ? in_lines(rows) : in_lines(rows) + 16;
}

// Where a thread keeps what belongs to one block.
struct Workspace {
  float* scores;  // [kBlockKeys, score_stride]
  float* keep;    // [rows]
  float* rows;    // block_floats
  float* bias;    // [kBlockKeys, LANES]
};

bool reserve(const Problem& p, int64_t rows, Scratch& scratch, Workspace& workspace) {
  const int64_t sizes[] = {kBlockKeys * score_stride(rows), padded(rows), block_floats(p, rows),
                           kBlockKeys * LANES};
  int64_t total = 0;
  for (const int64_t size : sizes) total += in_lines(size);
  auto* start = reinterpret_cast<float*>(
      scratch.reserve(static_cast<size_t>(total) * sizeof(float)));
  if (!start) return false;
  float** const parts[] = {&workspace.scores, &workspace.keep, &workspace.rows, &workspace.bias};
  for (int i = 0; i < 4; ++i) {
    *parts[i] = start;
    start += in_lines(sizes[i]);
  }
  return true;
}

void attend_block(const Problem& p, const Tile& tile, const void* query, const Block& block,
                  Ahead ahead, const Workspace& workspace, const Partial& partial) {
  const int64_t rows = padded(tile.count), stride = score_stride(rows);
  score(p, block, query, rows / LANES, workspace.scores, stride, workspace.rows, ahead);
  for (int64_t at = 0; at < rows; at += LANES) {
    float* scores = workspace.scores + at;
    mask(p, tile, at, block.first, block.keys, scores, stride, workspace.bias);
    soften(scores, stride, block.keys, partial.maximum + at, partial.sum + at, workspace.keep + at);
  }
  add_values(p, block, workspace.scores, stride, workspace.keep, tile.count, partial.output,
             workspace.rows, ahead);
}

// Attends to keys first .. end of a segment, and copies those of the past if asked to.
void attend_segment(const Problem& p, const Tile& tile, const void* query, const Segment& segment,
                    int64_t first, int64_t end, int64_t seen, bool copy, const Workspace& workspace,
                    const Partial& partial) {
  const int64_t step = block_keys(tile.count);
  bool follows = false;
  for (int64_t key = first; key < end; key += step) {
    const int64_t keys = least(step, end - key);
    if (copy && key < p.cache_len) copy_past_rows(p, tile.sequence, key, keys);
    const int64_t visible = least(keys, seen - key);
    if (visible <= 0 || hides(p, tile, key, visible)) continue;
    const int64_t next = key + step, left = least(step, least(end, seen) - next);
    const Block block = block_of(p, segment, key, static_cast<int>(visible),
                                 {follows, static_cast<int>(greatest(left, 0))}, workspace.rows);
    follows = true;
    const Ahead ahead = ahead_of(p, segment, next, left);
    attend_block(p, tile, query, block, ahead, workspace, partial);
  }
}

bool attend(const Problem& p, const Tile& tile, const void* packed, int64_t first_key,
            int64_t end_key, bool copy, const Partial& partial, Scratch& scratch) {
  Workspace workspace;
  if (!reserve(p, tile.count, scratch, workspace)) return false;
  const int64_t rows = padded(tile.count);
  fill(partial.output, rows * padded(p.kv_lora_rank), 0.0f);
  fill(partial.maximum, rows, kMinusInfinity);
  fill(partial.sum, rows, 0.0f);
  // No row of the tile sees further than its last one.
  const int64_t valid = valid_len(p, tile.sequence);
  const int64_t seen = last_key(p, valid, tile.first + tile.count - 1) + 1;
  const Segments all = segments(p, tile.sequence);
  for (int i = 0; i < all.count; ++i) {
    const Segment& segment = all.segment[i];
    attend_segment(p, tile, packed, segment, greatest(first_key, segment.first),
                   least(end_key, segment.first + segment.count), seen, copy, workspace, partial);
  }
  settle(p, partial.output, tile.count);
  return true;
}
