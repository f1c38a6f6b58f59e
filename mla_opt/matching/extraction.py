"""Reading the matrices of a latent attention off its graph, by running the region.

Between the latent rows and the keys and values everything is linear and token-wise, so feeding one
basis row a token gives the matrices, whatever the order of dims, the storage of the weight or the
exporter. Random rows in the same run measure how well the matrices describe the region.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mla_opt.graphs.protocol import Array, Binding, Graph, Value
from mla_opt.matching.latent_region import NotLatentError
from mla_opt.sites import LatentAttentionSite, LatentWeights

RANDOM_ROWS = 32
"""Rows that check the matrices: a wrong entry shows in each of them."""

PAST = 3
"""Past length at which regions are run; any would do."""

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a graph that makes keys and values out of latent rows."""

    graph: Graph
    latent: Value
    rope: Value | None
    key: Value
    value: Value
    key_is_transposed: bool

    @classmethod
    def of(cls, graph: Graph, site: LatentAttentionSite) -> Region:
        """The region of a site: before the cache, when expanded rows are cached."""
        if site.expanded is None:
            key, value, transposed = site.core.key, site.core.value, site.core.key_is_transposed
        else:
            key, value, transposed = site.expanded[0].new, site.expanded[1].new, False
        return cls(graph, site.latent, site.rope, key, value, transposed)

    def widths(self, binding: Binding) -> tuple[int, int]:
        """C and R."""
        latent = _known(binding, self.latent)
        rope = () if self.rope is None else _known(binding, self.rope)
        return latent[-1], rope[-1] if rope else 0

    def run(self, binding: Binding, rows: Float64) -> tuple[Float64, Float64]:
        """Keys ``[rows, H, D]`` and values ``[rows, H, V]`` of latent rows ``[rows, C + R]``.

        The rows are laid along the batch and token axes of the binding, as often as needed.
        """
        shape = _known(binding, self.latent)
        room = shape[0] * shape[-2]
        chunks = [rows[start : start + room] for start in range(0, len(rows), room)]
        done = [self._run_chunk(binding, chunk, room) for chunk in chunks]
        keys, values = (np.concatenate(parts) for parts in zip(*done))
        return keys[: len(rows)], values[: len(rows)]

    def _run_chunk(self, binding: Binding, rows: Float64, room: int) -> tuple[Float64, Float64]:
        width = _known(binding, self.latent)[-1]
        padded = np.zeros((room, rows.shape[1]))
        padded[: len(rows)] = rows
        feeds = {self.latent: self._shaped(binding, self.latent, padded[:, :width])}
        if self.rope is not None:
            feeds[self.rope] = self._shaped(binding, self.rope, padded[:, width:])
        key, value = binding.run([self.key, self.value], feeds)
        if self.key_is_transposed:
            key = key.swapaxes(-1, -2)
        return _by_row(key, room)[: len(rows)], _by_row(value, room)[: len(rows)]

    def _shaped(self, binding: Binding, value: Value, rows: Float64) -> Array:
        return rows.reshape(_known(binding, value)).astype(self.graph.dtype(value))


def extract(graph: Graph, site: LatentAttentionSite) -> LatentWeights:
    """Read the matrices of a site.

    Raises:
        NotLatentError: the region is not what the matrices say, or the heads use ``k_pe`` in a way
            that no shared row can replace.
    """
    region = Region.of(graph, site)
    binding = graph.nearest_binding(1, 1, PAST)
    c, r = region.widths(binding)
    rows = _probe_rows(c, r)
    binding = graph.nearest_binding(1, len(rows) - PAST, PAST)
    keys, values = region.run(binding, rows)
    return _weights(site, keys, values, rows, c, r)


def _probe_rows(c: int, r: int) -> Float64:
    """A zero row, the basis, and random rows."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((RANDOM_ROWS, c + r)).astype(np.float16)
    return np.concatenate([np.zeros((1, c + r)), np.eye(c + r), noise.astype(np.float64)])


def _weights(
    site: LatentAttentionSite, keys: Float64, values: Float64, rows: Float64, c: int, r: int
) -> LatentWeights:
    key_map, value_map = keys[1 : 1 + c + r] - keys[0], values[1 : 1 + c + r] - values[0]
    error = max(
        _deviation(rows[-RANDOM_ROWS:], key_map, keys[0], keys[-RANDOM_ROWS:]),
        _deviation(rows[-RANDOM_ROWS:], value_map, values[0], values[-RANDOM_ROWS:]),
    )
    if np.any(value_map[c:]):
        raise NotLatentError("rope_in_values", "the values depend on k_pe", (site.core.last,))
    rope_dims, factor = _rope_dims(site, key_map[c:])
    nope_dims = tuple(dim for dim in range(keys.shape[-1]) if dim not in set(rope_dims))
    if np.any(key_map[:c][:, :, list(rope_dims)]):
        raise NotLatentError(
            "rope_overlaps", "key dims mix the latent and k_pe", (site.core.first,)
        )
    bias = values[0]
    return LatentWeights(
        w_uk=np.ascontiguousarray(key_map[:c][:, :, list(nope_dims)].transpose(1, 2, 0)) / factor,
        w_uv=np.ascontiguousarray(value_map[:c].transpose(1, 0, 2)),
        value_bias=bias if np.any(bias) else None,
        nope_dims=nope_dims,
        rope_dims=rope_dims,
        key_scale=factor,
        error=error,
    )


def _deviation(rows: Float64, matrix: Float64, offset: Float64, seen: Float64) -> float:
    """Largest error of ``rows @ matrix + offset``, relative to the largest magnitude seen."""
    predicted = np.einsum("nc,chd->nhd", rows, matrix, optimize=True) + offset
    return float(np.abs(predicted - seen).max() / max(np.abs(seen).max(), 1e-30))


def _rope_dims(site: LatentAttentionSite, rope_map: Float64) -> tuple[tuple[int, ...], float]:
    """Where ``k_pe`` lands in a key ``[R, H, D]``, and the one factor it is multiplied by."""
    if not len(rope_map):
        return (), 1.0
    first = rope_map[:, 0, :]
    dims = np.abs(first).argmax(axis=1)
    factor = float(first[0, dims[0]])
    expected = np.zeros_like(rope_map)
    expected[np.arange(len(dims)), :, dims] = factor
    if len(set(dims.tolist())) != len(dims) or not factor or not np.allclose(rope_map, expected):
        raise NotLatentError(
            "rope_mixed",
            "the heads do not all hold k_pe as it is, in the same dims",
            (site.core.first,),
        )
    return tuple(int(dim) for dim in dims), factor


def _by_row(array: Array, room: int) -> Float64:
    """``[B, H, T, D]`` as ``[B T, H, D]``."""
    if array.ndim != 4 or array.shape[0] * array.shape[2] != room:
        raise NotLatentError(
            "not_token_wise", f"keys or values of shape {array.shape} for {room} rows"
        )
    rows = array.transpose(0, 2, 1, 3).reshape(room, array.shape[1], array.shape[3])
    return rows.astype(np.float64)


def _known(binding: Binding, value: Value) -> tuple[int, ...]:
    shape = binding.shape(value)
    if shape is None:
        raise NotLatentError("unknown_shape", f"the shape of {value.name} cannot be inferred")
    return shape
