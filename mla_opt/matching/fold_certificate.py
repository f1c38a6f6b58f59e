"""Proof of a fold: the model's own projection against the one that takes its place, in float64.

The original nodes run on random rows; the folded matrix multiplies the same. Compared are every
head of the absorbed query, its rotary part, where both lie in the query, and what W_O makes of the
attention's output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mla_opt.graphs.protocol import EXAMPLE, Binding, Graph
from mla_opt.handles import Array, Float64, Value
from mla_opt.matching.rounding import coarsest, of_sums
from mla_opt.sites import LatentAttentionSite
from mla_opt.sites.layout import HIDDEN, Layout, to_standard
from mla_opt.sites.projections import OutputProjection, QueryProjection


def query_holds(
    graph: Graph, site: LatentAttentionSite, fold: QueryProjection, parts: Sequence[Value]
) -> bool:
    """Whether the folded projection makes the absorbed query, up to rounding.

    ``parts`` are what the query is put together of, ``[B, H, S, N]`` and R numbers behind it.
    """
    weights, binding = site.weights, graph.nearest_binding(*EXAMPLE)
    assert weights is not None
    rows, feeds = _random(graph, binding, fold.source, fold.layout)
    wanted = [parts[0], *([] if fold.rope is None else [fold.rope])]
    nope, *rope = binding.run(wanted, feeds)
    pairs = [(_heads(rows @ fold.weight, nope), nope.astype(np.float64) @ weights.w_uk)]
    if fold.rope_weight is not None:
        pairs.append((_heads(rows @ fold.rope_weight, nope), rope[0].astype(np.float64)))
    limit = of_sums(coarsest([str(nope.dtype)]), rows.shape[-1], nope.shape[-1])
    return _are_placed(graph, binding, site, parts) and _hold(pairs, limit)


def output_holds(graph: Graph, site: LatentAttentionSite, fold: OutputProjection) -> bool:
    """Whether the folded projection makes of latent outputs what W_UV and W_O do."""
    weights, binding = site.weights, graph.nearest_binding(*EXAMPLE)
    shape = binding.shape(site.core.output)
    assert weights is not None and shape is not None
    heads, c, width = weights.w_uv.shape
    latent = np.random.default_rng(2).standard_normal((*shape[:3], c))
    given = (latent @ weights.w_uv.astype(np.float64)).astype(graph.dtype(site.core.output))
    (seen,) = binding.run([fold.result], {site.core.output: given})
    flat = latent.transpose(0, 2, 1, 3).reshape(shape[0], shape[2], heads * c)
    limit = of_sums(coarsest([str(seen.dtype)]), heads * width, c)
    layout = _sized(fold.layout, shape[0], shape[2])
    return _hold([(flat @ fold.weight, to_standard(seen, layout, HIDDEN))], limit)


def _sized(layout: Layout, batch: int, tokens: int) -> Layout:
    """A layout with the sizes of what may be in one axis together: sequences, and their tokens."""
    known = {"batch": batch, "query": tokens}
    return tuple(
        tuple(replace(part, size=part.size or known.get(part.role)) for part in axis)
        for axis in layout
    )


def _random(
    graph: Graph, binding: Binding, value: Value, layout: Layout
) -> tuple[Float64, dict[Value, Array]]:
    """Random rows ``[B, S, X]``, and the same as the graph has them."""
    shape = binding.shape(value)
    assert shape is not None
    given = np.random.default_rng(1).standard_normal(shape).astype(graph.dtype(value))
    return to_standard(given, layout, HIDDEN).astype(np.float64), {value: given}


def _heads(rows: Float64, like: Array) -> Float64:
    """``[B, S, H X]`` as ``[B, H, S, X]``."""
    batch, heads, tokens, _ = like.shape
    apart: Float64 = rows.reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3)
    return apart


def _are_placed(
    graph: Graph, binding: Binding, site: LatentAttentionSite, parts: Sequence[Value]
) -> bool:
    """Whether the query holds its parts in the dims where keys hold what they meet."""
    weights = site.weights
    assert weights is not None
    if site.core.query in parts:
        return True
    feeds = {part: _random_like(graph, binding, part, place) for place, part in enumerate(parts)}
    (query,) = binding.run([site.core.query], feeds)
    dims = [*weights.nope_dims, *weights.rope_dims]
    together = np.concatenate([feeds[part] for part in parts], axis=-1)
    return np.array_equal(query[..., dims], together)


def _random_like(graph: Graph, binding: Binding, value: Value, seed: int) -> Array:
    shape = binding.shape(value)
    assert shape is not None
    made: Array = np.random.default_rng(3 + seed).standard_normal(shape)
    return made.astype(graph.dtype(value))


def _hold(pairs: Sequence[tuple[Array, Array]], limit: float) -> bool:
    """Whether every head, or row, of each pair is the same up to rounding; never true of NaN."""
    return all(_relative(one, other) <= limit for one, other in pairs)


def _relative(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max() / max(float(np.abs(other).max()), 1e-30))
