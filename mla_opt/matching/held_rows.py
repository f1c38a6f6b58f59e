"""The tensors that a model caches the latent rows in, and which numbers of the row each holds.

    past  [B, P, C + R] --+
                          +-- concat -- [B, T, C + R] -- slices --> c_kv, k_pe
    new   [B, S, C + R] --+

Rows are walked back to where past and new ones are joined, through whatever only moves their
numbers. Where those go is told by labels that are sent through (:mod:`mla_opt.matching.labels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import EXAMPLE, Binding, Graph
from mla_opt.handles import Array, Value
from mla_opt.matching.labels import Trace, trace
from mla_opt.matching.not_latent import NotLatentError
from mla_opt.matching.region import Join, Region
from mla_opt.matching.roles import Roles
from mla_opt.matching.row_caches import cached_tensor, check_written_alike
from mla_opt.matching.shapes_of_rows import shape_of_rows
from mla_opt.matching.shared_rows import SharedRows
from mla_opt.sites import CachedTensor
from mla_opt.sites.layout import ROWS, Layout, from_standard, to_standard


def held_rows(graph: Graph, rows: SharedRows, roles: Roles) -> tuple[tuple[CachedTensor, ...], str]:
    """The tensors that hold the rows, or none, and why that is."""
    halves = _halves(graph, rows)
    joins: dict[Value, Join] = {}
    for half in halves:
        found = _join_below(graph, rows.region, half)
        if isinstance(found, str):
            return (), found
        joins[found.joined] = found
    try:
        tensors = [
            cached_tensor(graph, roles.of_rows, rows.region, join) for join in joins.values()
        ]
        check_written_alike(graph, tensors)
    except NotLatentError as error:
        return (), error.reason
    if (contradicted := _contradicted(graph, tensors)) is not None:
        return (), f"the model contradicts itself about the shape of {contradicted.name}"
    layouts = [(half, roles.of_rows(rows.region.axes[half])) for half in halves]
    placed = _with_places(graph, tensors, layouts)
    if placed is None:
        return (), "its cache holds other numbers than those of the latent rows, each once"
    return placed, ""


def _contradicted(graph: Graph, tensors: Sequence[CachedTensor]) -> Value | None:
    """A tensor that has other axes, or none that are known, where sizes are numbers."""
    binding = graph.nearest_binding(*EXAMPLE)
    shapes = ((each, shape_of_rows(binding, each.joined, each.layout, (each,))) for each in tensors)
    wrong = (
        each.joined for each, shape in shapes if shape is None or len(shape) != len(each.layout)
    )
    return next(wrong, None)


def _halves(graph: Graph, rows: SharedRows) -> tuple[Value, ...]:
    """``c_kv``, of every group of heads, and ``k_pe`` unless it is of width 0: that is not kept."""
    wide = [value for value in rows.of_keys_only if (graph.example_shape(value) or (1,))[-1] != 0]
    return (*rows.shared, *wide)


def _join_below(graph: Graph, region: Region, value: Value) -> Join | str:
    """Where past and new rows are joined to what a value is, moved; or what is in the way."""
    joins = {join.joined: join for join in region.joins}
    start = value
    while value not in joins:
        parts, node = region.made_of.get(value, ()), graph.producer(value)
        if len(parts) != 1 or node is None or not isinstance(graph.operation(node), op.Layout):
            leaf = region.leaves.get(value)
            made = "" if node is None else f"they are made by {graph.label(node)}"
            why = leaf.why if leaf is not None and leaf.why else made
            return f"its rows {start.name} are not those of an input joined with new ones: {why}"
        (value,) = parts
    return joins[value]


def _with_places(
    graph: Graph, tensors: Sequence[CachedTensor], halves: Sequence[tuple[Value, Layout]]
) -> tuple[CachedTensor, ...] | None:
    """The tensors with the numbers of a row that each holds; every number has one place."""
    binding = graph.nearest_binding(*EXAMPLE)
    widths = [_width(binding, tensor) for tensor in tensors]
    traced = _traced(graph, binding, tensors, widths, halves)
    sources = np.concatenate([each.source for each in traced])
    exact = all(
        each.alone and np.all(each.factor == 1.0) and not np.any(each.offset) for each in traced
    )
    if not exact or not np.array_equal(np.sort(sources), np.arange(sum(widths))):
        return None
    number = np.argsort(sources)
    ends = np.cumsum(widths)
    return tuple(
        replace(tensor, places=tuple(int(each) for each in number[end - width : end]))
        for tensor, width, end in zip(tensors, widths, ends)
    )


def _width(binding: Binding, tensor: CachedTensor) -> int:
    shape = shape_of_rows(binding, tensor.joined, tensor.layout, (tensor,)) or ()
    _, _, width = _by_token(np.empty(shape), tensor.layout).shape
    return int(width)


def _by_token(array: Array, layout: Layout) -> Array:
    """``[B, T, X]``."""
    return to_standard(array, layout, ROWS)


def _traced(
    graph: Graph,
    binding: Binding,
    tensors: Sequence[CachedTensor],
    widths: Sequence[int],
    halves: Sequence[tuple[Value, Layout]],
) -> tuple[Trace, ...]:
    """Where each number of ``c_kv`` and ``k_pe`` comes from among those of all tensors."""
    cuts = np.cumsum(widths)[:-1]

    def run(labels: Array) -> tuple[Array, ...]:
        feeds = {
            tensor.joined: _placed(graph, binding, tensor, part)
            for tensor, part in zip(tensors, np.split(labels, cuts))
        }
        asked = [value for value, _ in halves if value not in feeds]
        made = feeds | dict(zip(asked, binding.run(asked, feeds) if asked else []))
        return tuple(_by_token(made[value], layout)[0, 0].copy() for value, layout in halves)

    return trace(sum(widths), run)


def _placed(graph: Graph, binding: Binding, tensor: CachedTensor, labels: Array) -> Array:
    """A row of labels as every token of every sequence of a tensor."""
    shape = shape_of_rows(binding, tensor.joined, tensor.layout, (tensor,)) or ()
    batch, tokens, _ = _by_token(np.empty(shape), tensor.layout).shape
    rows = np.broadcast_to(labels, (batch, tokens, len(labels)))
    return from_standard(rows, tensor.layout, ROWS, shape).astype(graph.dtype(tensor.joined))
