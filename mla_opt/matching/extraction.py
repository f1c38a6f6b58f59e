"""Reading the matrices of a latent attention off its graph, by running parts of it.

Keys and values are made of one linear layer's output and of ``k_pe`` by layout alone. Labels sent
through that layout (:mod:`mla_opt.matching.labels`) tell which column of the layer each head and
dim is, whatever the order of dims, the way keys are put together, or the exporter; then the
matrices are columns of the layer's own. Random latent rows through the whole region, layer
included, measure how well the matrices describe it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mla_opt.graphs.protocol import EXAMPLE, Binding, Graph
from mla_opt.handles import Array, Float64, Node, Value
from mla_opt.matching.labels import Trace, trace
from mla_opt.matching.latent_region import NotLatentError
from mla_opt.matching.linear_matrix import LinearMatrix, linear_matrix
from mla_opt.sites import LatentAttentionSite, LatentWeights


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a graph that makes keys and values out of latent rows."""

    graph: Graph
    binding: Binding
    projection: Node
    latent: Value
    rope: Value | None
    key: Value
    value: Value
    key_is_transposed: bool

    @classmethod
    def of(cls, graph: Graph, site: LatentAttentionSite) -> Region:
        """The region of a site: before the cache, when expanded rows are cached."""
        binding = graph.nearest_binding(*EXAMPLE)
        if site.expanded is None:
            key, value, transposed = site.core.key, site.core.value, site.core.key_is_transposed
        else:
            key, value, transposed = site.expanded[0].new, site.expanded[1].new, False
        return cls(graph, binding, site.projection, site.latent, site.rope, key, value, transposed)

    @property
    def rope_width(self) -> int:
        """R."""
        return 0 if self.rope is None else self.shape(self.rope)[-1]

    def shape(self, value: Value) -> tuple[int, ...]:
        """Shape of a value; raises `NotLatentError` where it is unknown."""
        shape = self.binding.shape(value)
        if shape is None:
            raise NotLatentError("unknown_shape", f"the shape of {value.name} cannot be inferred")
        return shape

    def run(self, rows: Float64) -> tuple[Array, Array]:
        """Keys ``[B, H, T, D]`` and values ``[B, H, T, V]`` of latent rows ``[B, T, C + R]``."""
        c = self.shape(self.latent)[-1]
        return self._run({self.latent: rows[..., :c]}, rows[..., c:])

    def run_layout(self, projected: Array, rope: Array) -> tuple[Array, Array]:
        """The same of one row of the layer's output and one of ``k_pe``, for every token."""
        (output,) = self.graph.results(self.projection)
        return self._run({output: projected}, rope)

    def _run(self, sources: dict[Value, Array], rope: Array) -> tuple[Array, Array]:
        if self.rope is not None:
            sources = {**sources, self.rope: rope}
        feeds = {value: self._fitted(value, rows) for value, rows in sources.items()}
        key, value = self.binding.run([self.key, self.value], feeds)
        return (key.swapaxes(-1, -2) if self.key_is_transposed else key), value

    def _fitted(self, value: Value, rows: Array) -> Array:
        """Rows ``[B, T, X]``, or one row for all tokens, in the shape and type of ``value``."""
        shape = self.shape(value)
        fitted = np.broadcast_to(rows, shape) if rows.ndim == 1 else rows.reshape(shape)
        return fitted.astype(self.graph.dtype(value))


def extract(graph: Graph, site: LatentAttentionSite) -> LatentWeights:
    """Read the matrices of a site.

    Raises:
        NotLatentError: the region is not what matrices can say, or the heads use ``k_pe`` in a way
            that no shared row can replace.
    """
    region = Region.of(graph, site)
    matrix = linear_matrix(graph, region.binding, site.projection)
    width, r = matrix.weight.shape[1], region.rope_width

    def run(labels: Array) -> tuple[Array, Array]:
        key, value = region.run_layout(labels[:width], labels[width:])
        return _one_token(key), _one_token(value)

    key, value = trace(width + r, run)
    return _weights(site, matrix, key, value, r)


def _one_token(array: Array) -> Array:
    """``[H, D]`` of the first token; every token was fed the same row."""
    return array[0, :, 0, :]


def _weights(
    site: LatentAttentionSite, matrix: LinearMatrix, key: Trace, value: Trace, r: int
) -> LatentWeights:
    width = matrix.weight.shape[1]
    rope_dims, factor = _rope_dims(site, key, width)
    if len(rope_dims) != r:
        raise NotLatentError(
            "rope_mixed",
            f"the heads do not hold the whole of k_pe: {len(rope_dims)} of {r} dims",
            (site.core.first,),
        )
    if np.any(value.source >= width):
        raise NotLatentError("rope_in_values", "the values depend on k_pe", (site.core.last,))
    nope_dims = tuple(dim for dim in range(key.source.shape[1]) if dim not in set(rope_dims))
    columns = list(nope_dims)
    w_uk = _columns(matrix, key.source[:, columns], key.factor[:, columns] / factor)
    w_uv = _columns(matrix, value.source, value.factor)
    bias = value.offset
    if matrix.bias is not None:
        bias = bias + np.where(value.moved, matrix.bias[value.source] * value.factor, 0.0)
    return LatentWeights(
        w_uk=np.ascontiguousarray(w_uk.transpose(1, 2, 0)),
        w_uv=np.ascontiguousarray(w_uv.transpose(1, 0, 2)),
        value_bias=bias if np.any(bias) else None,
        nope_dims=nope_dims,
        rope_dims=rope_dims,
        key_scale=factor,
    )


def _columns(matrix: LinearMatrix, source: Array, factor: Array) -> Array:
    """Columns of the layer ``[C, H, D]``, each times its factor; zero where there is no source."""
    picked = matrix.weight[:, source]
    if np.all(factor == 1.0):
        return picked
    scaled = picked.astype(np.float64) * np.where(source >= 0, factor, 0.0)
    return scaled.astype(matrix.weight.dtype)


def _rope_dims(site: LatentAttentionSite, key: Trace, width: int) -> tuple[tuple[int, ...], float]:
    """Where ``k_pe`` lands in every head's key, and the one factor it is multiplied by."""
    from_rope = key.source >= width
    dims = np.flatnonzero(from_rope[0])
    if not from_rope.any():
        return (), 1.0
    order = dims[np.argsort(key.source[0, dims])]
    factor = float(key.factor[0, order[0]])
    same = (
        np.array_equal(np.broadcast_to(from_rope[0], from_rope.shape), from_rope)
        and np.array_equal(
            np.broadcast_to(key.source[0, order], (len(key.source), len(order))),
            key.source[:, order],
        )
        and np.all(key.factor[:, order] == factor)
        and np.array_equal(key.source[0, order] - width, np.arange(len(order)))
        and not np.any(key.offset[:, order])
    )
    if not same:
        raise NotLatentError(
            "rope_mixed",
            "the heads do not all hold the whole of k_pe as it is, in the same dims",
            (site.core.first,),
        )
    return tuple(int(dim) for dim in order), factor
