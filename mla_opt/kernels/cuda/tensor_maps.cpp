#include "tensor_maps.h"

#include <limits>

#include "machine.h"

namespace mla_opt::cuda {
namespace {

// len: rows of each sequence.
bool make_map(const Problem& p, const void* start, int64_t len, int64_t columns, TensorMap& map) {
  constexpr int keys = tile_of(Width::kWarpgroups, Memory::kLarge).keys;
  const Rows rows{start, p.batch * len, columns};
  // A kernel names rows by 32-bit numbers.
  return len >= keys && rows.count <= std::numeric_limits<int32_t>::max() &&
         encode_tensor_map(rows, keys, map);
}

}  // namespace

TensorMaps make_tensor_maps(const Problem& p) {
  TensorMaps maps{};
  const int64_t rank = p.kv_lora_rank, columns = rank + p.rope_dim;
  maps.has_latent = make_map(p, p.latent, p.new_len, columns, maps.latent);
  maps.has_cache =
      p.rope_cache ? make_map(p, p.cache, p.cache_len, rank, maps.cache) &&
                         make_map(p, p.rope_cache, p.cache_len, p.rope_dim, maps.rope_cache)
                   : make_map(p, p.cache, p.cache_len, columns, maps.cache);
  return maps;
}

}  // namespace mla_opt::cuda
