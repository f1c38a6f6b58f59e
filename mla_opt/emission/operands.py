"""What both forms of a latent attention read: the query in two parts, rows, weights and bias."""

from __future__ import annotations

import numpy as np

from mla_opt.emission.layout import standard
from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import EXAMPLE, Builder, Graph
from mla_opt.handles import Value
from mla_opt.sites import BiasTerm, LatentAttentionSite, LatentWeights, Operands, StoredWeights
from mla_opt.sites.core import CoreLayouts, sinks_of_heads
from mla_opt.sites.layout import HIDDEN, KEYS, QUERY, SCORES, Layout

_SWALLOWS = -1e30
"""Added to a score in float32, a number as low as this is what comes out."""


def operands(graph: Graph, builder: Builder, site: LatentAttentionSite) -> Operands:
    """Make the operands of a site available at the place of ``builder``."""
    weights = site.weights
    assert weights is not None
    _complete_types(graph, site)
    absorbed = _folded_query(graph, builder, site)
    bias, seeing = _bias_and_seeing(graph, builder, site)
    if absorbed is not None:
        absorbed = _that_sees(builder, site, absorbed, seeing)
    nope, rope = _query_parts(graph, builder, site, weights, seeing)
    for part in (nope, rope):
        if part is not None:
            builder.declare_like(part, site.core.query)
    return Operands(
        query_nope=nope,
        query_rope=rope,
        weights=store_weights(graph, builder, site, weights),
        bias=bias,
        sink=_sink(graph, builder, site),
        query_absorbed=absorbed,
        output_weight=_folded_output(graph, builder, site),
    )


def _folded_query(graph: Graph, builder: Builder, site: LatentAttentionSite) -> Value | None:
    """The query in latent space in one product; its rotary part gets a projection of its own."""
    folded = site.query_projection
    if folded is None:
        return None
    dtype = graph.dtype(site.core.query)
    heads = site.weights.w_uk.shape[0] if site.weights is not None else 0
    weight = builder.constant(folded.weight.astype(dtype), "w_uq_uk")
    source = standard(builder, folded.source, folded.layout, HIDDEN, "query_source")
    absorbed = _by_head(builder, builder.matmul(source, weight, "query_latent_rows"), heads)
    builder.declare_like(absorbed, site.core.query)
    if folded.rope is not None and folded.rope_weight is not None:
        rope_weight = builder.constant(folded.rope_weight.astype(dtype), "w_uq_rope")
        raw = builder.matmul(source, rope_weight, "query_rope_rows")
        graph.replace(folded.rope, _by_head(builder, raw, heads))
    return absorbed


def _by_head(builder: Builder, rows: Value, heads: int) -> Value:
    """``[B, S, H X]`` as ``[B, H, S, X]``."""
    split = builder.reshape(rows, builder.integers(0, 0, heads, -1), "by_head")
    return builder.transpose(split, (0, 2, 1, 3), "heads_first")


def _folded_output(graph: Graph, builder: Builder, site: LatentAttentionSite) -> Value | None:
    folded = site.output_projection
    if folded is None:
        return None
    return builder.constant(folded.weight.astype(graph.dtype(site.core.query)), "w_uv_o")


def _complete_types(graph: Graph, site: LatentAttentionSite) -> None:
    """Have the element types noted that emission goes by; TorchScript files declare none."""
    rows = [part.value for part in site.latents] + ([] if site.rope is None else [site.rope])
    for value in (site.core.query, *rows, *(term.value for term in site.core.bias)):
        graph.dtype(value)


def store_weights(
    graph: Graph, builder: Builder, site: LatentAttentionSite, weights: LatentWeights
) -> StoredWeights:
    """Store the matrices of a site, once, in the element type of its query."""
    if site.stored is None:
        site.stored = _store(graph, builder, site, weights)
    return site.stored


def _store(
    graph: Graph, builder: Builder, site: LatentAttentionSite, weights: LatentWeights
) -> StoredWeights:
    dtype = graph.dtype(site.core.query)
    bias = weights.value_bias
    return StoredWeights(
        w_uk=builder.constant(weights.w_uk, "w_uk", dtype),
        w_uv=builder.constant(weights.w_uv, "w_uv", dtype),
        value_bias=None
        if bias is None
        else builder.constant(bias[:, None, :].astype(dtype), "value_bias"),
    )


def _query_parts(
    graph: Graph,
    builder: Builder,
    site: LatentAttentionSite,
    weights: LatentWeights,
    seeing: Value | None,
) -> tuple[Value, Value | None]:
    query = standard(builder, site.core.query, layouts(site).query, QUERY, "query_by_head")
    query = _that_sees(builder, site, query, seeing)
    n, r = len(weights.nope_dims), len(weights.rope_dims)
    if weights.nope_dims == tuple(range(n)) and weights.rope_dims == tuple(range(n, n + r)):
        if not r:
            return query, None
        return _concatenated(graph, builder, query, n) or _split(builder, query, n, r)
    nope = builder.gather(query, weights.nope_dims, 3, "query_nope")
    rope = builder.gather(query, weights.rope_dims, 3, "query_rope") if r else None
    return nope, rope


def _that_sees(
    builder: Builder, site: LatentAttentionSite, query: Value, seeing: Value | None
) -> Value:
    """A query ``[B, H, S, X]``, zero where it has no key that it may attend to."""
    if seeing is None:
        return query
    nothing = builder.scalar_like(0.0, site.core.query, "no_query")
    return builder.where(seeing, query, nothing, "query_that_sees")


def _split(builder: Builder, query: Value, n: int, r: int) -> tuple[Value, Value]:
    nope, rope = builder.split(query, (n, r), 3, ("query_nope", "query_rope"))
    return nope, rope


def _concatenated(
    graph: Graph, builder: Builder, query: Value, n: int
) -> tuple[Value, Value] | None:
    """The parts that the query was just put together from, if that is what happened."""
    node = graph.producer(query)
    operation = None if node is None else graph.operation(node)
    if not isinstance(operation, op.Layout) or operation.concat_axis != -1:
        return None
    first = graph.example_shape(operation.data[0])
    if first is None or first[-1] != n or len(operation.data) < 2:
        return None
    rest = operation.data[1:]
    return operation.data[0], rest[0] if len(rest) == 1 else builder.concat(rest, 3, "query_rope")


def _bias(graph: Graph, builder: Builder, site: LatentAttentionSite) -> Value | None:
    """All bias terms as one: boolean if there is nothing else, additive otherwise."""
    masks = [_allowed(builder, term) for term in site.core.bias if is_boolean(graph, term)]
    addends = [
        _addend(graph, builder, term, site.core.query)
        for term in site.core.bias
        if not is_boolean(graph, term)
    ]
    mask = masks[0] if masks else None
    for other in masks[1:]:
        mask = builder.both(mask, other, "mask") if mask is not None else other
    total = addends[0] if addends else None
    for other in addends[1:]:
        total = builder.add(total, other, "bias") if total is not None else other
    if mask is None or total is None:
        return mask if total is None else total
    never = builder.constant(np.asarray(-np.inf, dtype=graph.dtype(site.core.query)), "never")
    return builder.where(mask, total, never, "bias")


def _bias_and_seeing(
    graph: Graph, builder: Builder, site: LatentAttentionSite
) -> tuple[Value | None, Value | None]:
    """The bias, and which queries it lets attend to anything, where that has to be known.

    A mask that fills scores with a number lets a query without a key attend to all keys alike. A
    number that swallows any score when it is added does the same; for others such a query is made
    zero, and may attend to everything.
    """
    terms = [term for term in site.core.bias if is_boolean(graph, term) and term.fill != -np.inf]
    if not terms:
        return _bias(graph, builder, site), None
    (term,) = terms
    mask, query = _allowed(builder, term), site.core.query
    if term.fill <= _SWALLOWS and graph.dtype(query).itemsize >= 4:
        level = builder.scalar_like(term.fill, query, "fill")
        return builder.where(mask, builder.scalar_like(0.0, query, "attend"), level, "bias"), None
    one, zero = (builder.scalar_like(number, query, "truth") for number in (1.0, 0.0))
    count = builder.row_maximum(builder.where(mask, one, zero, "mask_numbers"), "any_key")
    seeing = builder.greater(count, zero, "seeing")
    hidden = builder.both(builder.negate(mask, "forbidden"), seeing, "hidden")
    return builder.negate(hidden, "mask_or_blind"), seeing


def _addend(graph: Graph, builder: Builder, term: BiasTerm, query: Value) -> Value:
    """An addend as the operator takes it: with at least one axis, in the query's element type.

    An attention that computes in a wider type than its query has its mask in that type.
    """
    wide = graph.dtype(term.value) != graph.dtype(query)
    value = _as_scores(builder, term)
    if graph.example_shape(term.value) == ():
        value = builder.reshape(value, builder.integers(1), "bias_with_axis")
    if term.factor != 1.0:
        factor = builder.scalar_like(term.factor, term.value, "bias_scale")
        value = builder.multiply(value, factor, "bias_scaled")
    return builder.cast_like(value, query, "bias_of_query_type") if wide else value


def is_boolean(graph: Graph, term: BiasTerm) -> bool:
    """Whether a bias term allows or forbids, rather than adds."""
    if term.kind == "either":
        return graph.dtype(term.value) == np.bool_
    return term.kind != "additive"


def _allowed(builder: Builder, term: BiasTerm) -> Value:
    mask = _as_scores(builder, term)
    return builder.negate(mask, "mask") if term.kind == "blocked" else mask


def _as_scores(builder: Builder, term: BiasTerm) -> Value:
    """A bias whose axes, as far as it has them, are the last of ``[B, H, S, T]``."""
    layout = term.layout
    if layout is None or is_tail(layout):
        return term.value
    return standard(builder, term.value, layout, SCORES, "bias_by_head")


def is_tail(layout: Layout) -> bool:
    """Whether axes are the last of those of the scores, in their order."""
    tail = SCORES[len(SCORES) - len(layout) :]
    return len(layout) <= len(SCORES) and all(
        len(axis) <= 1 and all(part.role == role for part in axis)
        for axis, role in zip(layout, tail)
    )


def layouts(site: LatentAttentionSite) -> CoreLayouts:
    """Where the axes of the attention are in its graph."""
    assert site.core.layouts is not None
    return site.core.layouts


def _sink(graph: Graph, builder: Builder, site: LatentAttentionSite) -> Value | None:
    """The sinks as a vector ``[H]``, stored anew: exporters keep them in other shapes."""
    sink = site.core.sink
    if sink is None:
        return None
    assert site.weights is not None
    if isinstance(sink, float):
        content = np.asarray(sink)
    else:
        (content,) = graph.nearest_binding(*EXAMPLE).run([sink], {})
    sinks = sinks_of_heads(content, site.weights.w_uk.shape[0])
    return builder.constant(sinks.astype(graph.dtype(site.core.query)), "sink")


def as_rows(builder: Builder, value: Value, layout: Layout | None) -> Value:
    """Latent rows as ``[B, 1, T, X]``, whatever axes the graph has them in."""
    assert layout is not None
    return standard(builder, value, layout, KEYS, "rows")


def new_rows(builder: Builder, site: LatentAttentionSite) -> tuple[Value, ...]:
    """``c_kv`` and, unless R is 0, ``k_pe``, each ``[B, 1, T, X]``; one tensor of both if it is."""
    if len(site.held) == 1 and site.held[0].places == tuple(range(len(site.held[0].places))):
        return (as_rows(builder, site.held[0].joined, site.held[0].layout),)
    parts = [as_rows(builder, part.value, part.layout) for part in site.latents]
    latent = parts[0] if len(parts) == 1 else builder.concat(parts, 3, "rows_of_groups")
    if site.rope is None:
        return (latent,)
    return latent, as_rows(builder, site.rope, site.rope_layout)
