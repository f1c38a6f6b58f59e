// Attention by a tier that multiplies on the tiles of AMX. Included after flash.inl.

bool attend_on_tiles(const Problem& p, const Tile& tile, const void* packed, int64_t first_key,
                     int64_t end_key, bool copy, const Partial& partial, Scratch& scratch) {
  configure(kTileRows);
  const bool done = attend(p, tile, packed, first_key, end_key, copy, partial, scratch);
  // A thread with tiles in use takes longer to be switched, and to sleep.
  _tile_release();
  return done;
}
