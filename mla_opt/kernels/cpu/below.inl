// For a tier that takes some problems only, and hands the others to the tier below. Included after
// flash.inl by a tier that defines
//   FITS    whether it takes a problem
//   ATTEND  its attend
//   BELOW   the other tier

size_t query_bytes_or_below(const Problem& p, int64_t rows) {
  return FITS(p) ? query_bytes(p, rows) : BELOW.query_bytes(p, rows);
}

void pack_query_or_below(const Problem& p, const Tile& tile, void* packed) {
  return FITS(p) ? pack_query(p, tile, packed) : BELOW.pack_query(p, tile, packed);
}

bool attend_or_below(const Problem& p, const Tile& tile, const void* packed, int64_t first_key,
                     int64_t end_key, bool copy, const Partial& partial, Scratch& scratch) {
  const auto run = FITS(p) ? ATTEND : BELOW.attend;
  return run(p, tile, packed, first_key, end_key, copy, partial, scratch);
}
