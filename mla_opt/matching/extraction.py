"""Reading the matrices of a latent attention off its graph, by running parts of it.

What lies between rows and keys and values does the same to every token and every sequence, and is
affine in the row: that has been proved (:mod:`mla_opt.matching.region`). So basis rows sent through
it give the matrices, whatever they are stored as. Where one plain linear layer is all that computes
there, labels sent through the layout behind it (:mod:`mla_opt.matching.labels`) tell which column
of the layer each head and dim is, and the matrices are columns of the layer's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import EXAMPLE, Binding, Graph
from mla_opt.handles import Array, Float64, Node, Value
from mla_opt.matching.images import Images, Picks
from mla_opt.matching.labels import Trace, trace
from mla_opt.matching.linear_matrix import linear_matrix, multiplies_rows
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.shapes_of_rows import shape_of_rows
from mla_opt.sites import CachedTensor, LatentAttentionSite, LatentRows, LatentWeights
from mla_opt.sites.core import AttentionCore, CoreLayouts
from mla_opt.sites.layout import (
    KEYS,
    ROWS,
    Layout,
    from_standard,
    head_count,
    heads_of,
    to_standard,
)

_BLOCK = 256
"""Rows and columns of a matrix that are transposed at once."""


@dataclass(frozen=True, slots=True)
class Region:
    """The part of a graph that makes keys and values out of latent rows."""

    graph: Graph
    binding: Binding
    site: LatentAttentionSite

    @classmethod
    def of(cls, graph: Graph, site: LatentAttentionSite) -> Region:
        """The region of a site, at small sizes."""
        return cls(graph, graph.nearest_binding(*EXAMPLE).repeated(), site)

    @property
    def core(self) -> AttentionCore:
        """The attention."""
        return self.site.core

    @property
    def layouts(self) -> CoreLayouts:
        """Where its axes are."""
        assert self.core.layouts is not None
        return self.core.layouts

    @property
    def heads(self) -> int:
        """H."""
        return head_count(self.layouts.query)

    @property
    def latent_width(self) -> int:
        """C, of all groups of heads together."""
        return sum(part.width for part in self.site.latents)

    @property
    def rope_width(self) -> int:
        """R."""
        return 0 if self.site.rope is None else self.of_rope(self.site.rope).width

    def shape(self, value: Value) -> tuple[int, ...]:
        """Shape of a value; raises `NotLatentError` where it is unknown."""
        shape = self.binding.shape(value)
        if shape is None:
            raise NotLatentError("unknown_shape", f"the shape of {value.name} cannot be inferred")
        return shape

    def joined_shape(self, part: CachedTensor) -> tuple[int, ...]:
        """Shape of a cache with its new rows; some size where data says how many those are."""
        return self._of_rows(part.joined, part.layout)

    def _of_rows(self, value: Value, layout: Layout) -> tuple[int, ...]:
        tensors = self.site.expanded or self.site.held
        shape = shape_of_rows(self.binding, value, layout, tensors)
        return self.shape(value) if shape is None else shape

    def count(self) -> tuple[int, int]:
        """B and T of latent rows."""
        part = self.site.latents[0]
        batch, tokens, _ = to_standard(
            np.empty(self._of_rows(part.value, part.layout)), part.layout, ROWS
        ).shape
        return batch, tokens

    def fed(self, rows: Array) -> dict[Value, Array]:
        """Latent rows ``[B, T, C + R]`` as what the graph has of them."""
        parts = list(self.site.latents)
        if self.site.rope is not None:
            parts.append(self.of_rope(self.site.rope))
        ends = np.cumsum([part.width for part in parts])
        return {
            part.value: self.placed(part, rows[..., end - part.width : end])
            for part, end in zip(parts, ends)
        }

    def of_rope(self, rope: Value) -> LatentRows:
        """``k_pe``, with its layout."""
        assert self.site.rope_layout is not None
        return LatentRows(rope, self.site.rope_layout)

    def placed(self, part: LatentRows, rows: Array) -> Array:
        """Rows ``[B, T, width]`` of one value, as the graph has them."""
        shape = self._of_rows(part.value, part.layout)
        placed = from_standard(rows, part.layout, ROWS, shape)
        return placed.astype(self.graph.dtype(part.value))

    def run(self, rows: Array) -> tuple[Array, Array]:
        """Keys ``[B, H, T, D]`` and values ``[B, H, T, V]`` of latent rows ``[B, T, C + R]``."""
        return self.run_from(self.fed(rows), rows.shape[1])

    def run_from(self, feeds: dict[Value, Array], tokens: int) -> tuple[Array, Array]:
        """The same of other values in the place of the rows.

        Where keys and values are cached, theirs are the last tokens of the caches, behind zeros.
        """
        if self.site.expanded is not None:
            feeds = self._cached(self.site.expanded, feeds, tokens)
        wanted = [self.core.key, self.core.value]
        heads = heads_of(self.layouts.query)
        asked = [value for value in wanted if value not in feeds]
        made = feeds | dict(zip(asked, self.binding.run(asked, feeds) if asked else []))
        found = [made[value] for value in wanted]
        keys, values = (
            to_standard(array, layout, KEYS, heads)[:, :, -tokens:]
            for array, layout in zip(found, (self.layouts.key, self.layouts.value))
        )
        return keys, values

    def _cached(
        self, expanded: Sequence[CachedTensor], feeds: dict[Value, Array], tokens: int
    ) -> dict[Value, Array]:
        """The caches with what new rows become at their end."""
        cached: dict[Value, Array] = {}
        for part, new in zip(expanded, self.binding.run([part.new for part in expanded], feeds)):
            joined = np.zeros(self.joined_shape(part), dtype=self.graph.dtype(part.joined))
            np.moveaxis(joined, part.axis, 0)[-tokens:] = np.moveaxis(
                part.like_joined(new), part.axis, 0
            )
            cached[part.joined] = joined
        return cached


def extract(graph: Graph, site: LatentAttentionSite) -> LatentWeights:
    """Read the matrices of a site.

    Raises:
        NotLatentError: the heads use ``k_pe`` in a way that no shared row can replace.
    """
    region = Region.of(graph, site)
    images = _by_labels(region, site.projection) if _is_plain(graph, site) else None
    if images is None:
        images = _by_basis(region)
    weights = _weights(site, images)
    _check_buffers(site, weights)
    return weights


def _check_buffers(site: LatentAttentionSite, weights: LatentWeights) -> None:
    """Places of a buffer that nothing is written to yet hold zeros, which no row has to become."""
    if site.expanded is None or site.expanded[0].positions is None:
        return
    if weights.key_bias is not None or weights.value_bias is not None:
        raise NotLatentError(
            "buffer_bias",
            "keys or values have a bias, so that the zeros of a buffer that is not full yet are"
            " those of no latent row",
            (site.core.first,),
        )


def _is_plain(graph: Graph, site: LatentAttentionSite) -> bool:
    """Whether labels can be sent from behind the linear layer: its width is the last axis."""
    if site.projection is None:
        return False
    operation = graph.operation(site.projection)
    if not isinstance(operation, op.Linear) or operation.axes is None:
        return False
    one_axis = len(operation.axes.result) == len(operation.axes.first)
    return one_axis and multiplies_rows(graph, operation)


def _by_labels(region: Region, projection: Node | None) -> Images | None:
    """Columns of the layer's own matrix; ``None`` where the layout behind it computes."""
    assert projection is not None
    matrix = linear_matrix(region.graph, region.binding, projection)
    width, r = matrix.weight.shape[1], region.rope_width
    (output,) = region.graph.results(projection)
    batch, tokens = region.count()

    def run(labels: Array) -> tuple[Array, Array]:
        shape = region.shape(output)
        feeds = {output: np.broadcast_to(labels[:width], shape).astype(region.graph.dtype(output))}
        if region.site.rope is not None:
            rows = np.broadcast_to(labels, (batch, tokens, len(labels)))
            rope = region.of_rope(region.site.rope)
            feeds[rope.value] = region.placed(rope, rows[..., width:])
        keys, values = region.run_from(feeds, tokens)
        return keys[0, :, 0].copy(), values[0, :, 0].copy()  # not all rows for the sake of one

    key, value = trace(width + r, run)
    if not (key.alone and value.alone):
        return None
    if np.any(value.source >= width):
        raise NotLatentError("rope_in_values", "the values depend on k_pe", (region.core.last,))
    bias = np.zeros(width) if matrix.bias is None else matrix.bias
    return Images(
        _transposed(matrix.weight),
        Picks.traced(key, width),
        Picks.traced(value, width),
        _one_hot(key, width, r),
        np.zeros((*value.source.shape, r)),
        key.offset + np.where(_within(key, width), bias[key.source % width] * key.factor, 0.0),
        value.offset + np.where(value.moved, bias[value.source] * value.factor, 0.0),
    )


def _transposed(matrix: Array) -> Array:
    """The transpose in its order of memory, block by block: those that the processor holds.

    Each block is copied first: rows whose distance is a power of two push each other out of the
    processor's cache.
    """
    if matrix.T.flags.c_contiguous:
        return matrix.T
    made = np.empty_like(matrix.T, order="C")
    for row in range(0, len(matrix), _BLOCK):
        for column in range(0, len(made), _BLOCK):
            block = matrix[row : row + _BLOCK, column : column + _BLOCK].copy()
            made[column : column + _BLOCK, row : row + _BLOCK] = block.T
    return made


def _within(traced: Trace, width: int) -> Array:
    within: Array = traced.moved & (traced.source < width)
    return within


def _one_hot(traced: Trace, width: int, r: int) -> Array:
    """What each dim of ``k_pe`` becomes in the keys: ``[H, D, R]``."""
    made = np.zeros((*traced.source.shape, r))
    places = np.nonzero(traced.moved & (traced.source >= width))
    made[*places, traced.source[places] - width] = traced.factor[places]
    return made


def _by_basis(region: Region) -> Images:
    """Send a row of zeros and the basis through, as many rows a run as the binding has."""
    batch, tokens = region.count()
    width, room = region.latent_width + region.rope_width, batch * tokens
    rows = np.concatenate([np.zeros((1, width)), np.eye(width)])
    padded = np.concatenate([rows, np.zeros((-len(rows) % room, width))])
    made = [region.run(part) for part in padded.reshape(-1, batch, tokens, width)]
    made_of = [
        np.concatenate(
            [each[half].swapaxes(1, 2).reshape(room, *_head(each[half])) for each in made]
        )
        for half in (0, 1)
    ]
    of_keys, of_values = ((each[1 : len(rows)] - each[0]).transpose(1, 2, 0) for each in made_of)
    c = region.latent_width
    (heads, d, _), (_, v, _) = of_keys.shape, of_values.shape
    return Images(
        np.concatenate([each[..., :c].reshape(-1, c) for each in (of_keys, of_values)]),
        Picks.all_from(0, heads, d),
        Picks.all_from(heads * d, heads, v),
        of_keys[..., c:],
        of_values[..., c:],
        made_of[0][0],
        made_of[1][0],
    )


def _head(array: Array) -> tuple[int, int]:
    return array.shape[1], array.shape[3]


def _weights(site: LatentAttentionSite, images: Images) -> LatentWeights:
    """Tell what the values are made of from what only the keys are."""
    if np.any(images.rope_values):
        raise NotLatentError("rope_in_values", "the values depend on k_pe", (site.core.last,))
    rope_dims, factor = _rope_dims(site, images)
    nope_dims = tuple(sorted(set(range(images.keys.dims)) - set(rope_dims)))
    bias = images.value_offset
    if site.core.sink is not None and np.any(bias):
        raise NotLatentError(
            "sink_with_value_bias",
            "its values have a bias and its probabilities do not add up to one, for a sink has a"
            " share: how much of the bias a query gets is not known after the attention",
            (site.core.last,),
        )
    if site.core.sink is not None and np.any(images.key_offset):
        raise NotLatentError(
            "sink_with_key_bias",
            "its keys have a bias, which moves all scores of a query but not its sink's",
            (site.core.first,),
        )
    nope = images.keys.at(list(nope_dims)).over(factor)  # the factor of the keys is taken out
    return LatentWeights(
        by_head=nope.before(images.values).of(images.matrix),
        value_bias=bias if np.any(bias) else None,
        nope_dims=nope_dims,
        rope_dims=rope_dims,
        key_scale=factor,
        key_bias=images.key_offset if np.any(images.key_offset) else None,
    )


def _rope_dims(site: LatentAttentionSite, images: Images) -> tuple[tuple[int, ...], float]:
    """Where ``k_pe`` lands in every head's key, and the one factor it is multiplied by."""
    parts = images.rope_keys
    if not parts.size:
        return (), 1.0
    holds = parts != 0
    dims = holds[0].argmax(axis=0)
    factor = float(parts[0, dims[0], 0])
    alone = np.count_nonzero(holds, axis=1) == 1  # and so it is in no other dim
    same = parts[:, dims, np.arange(len(dims))] == factor
    others = images.keys.at(dims.tolist()).any_in(images.matrix)
    if not (np.all(alone) and np.all(same)) or others or len(set(dims.tolist())) < len(dims):
        raise NotLatentError(
            "rope_mixed",
            "the heads do not all hold the whole of k_pe as it is, in the same dims",
            (site.core.first,),
        )
    return tuple(int(dim) for dim in dims), factor


__all__ = ["Float64", "Region", "extract"]
