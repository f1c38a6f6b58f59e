"""An attention in nodes of its own: a softmax between products of query and keys and of values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node
from mla_opt.matching.axes import Placement, Variables
from mla_opt.matching.core_axes import KEYS, At, CoreAxes, ReadCore
from mla_opt.matching.normalised import Normalised
from mla_opt.matching.score_product import peel_scale
from mla_opt.matching.scores import Scores, ScoresWalk
from mla_opt.matching.weighted_values import weighted_values, with_values
from mla_opt.sites import AttentionCore

_ROUNDED = (
    "its softmax takes the logarithm of a sum off scores that a mask may have made as low as the"
    " type can say, so what a query that may attend to nothing gets cannot be kept"
)
_SUMMED = (
    "its scores are products, or scaled by stored numbers, that cannot be written as one product"
)


def softmax_core(graph: Graph, softmax: Normalised) -> ReadCore | None:
    """The attention around a softmax; ``None`` if it is none."""
    variables = Variables()
    found = scores_before(graph, variables, softmax)
    weighted = weighted_values(graph, softmax.made, depth=6)
    if found is None or weighted is None:
        return None
    scores, axes = found
    last, value = weighted
    if softmax.divided is not None and last is not _dividend(graph, softmax.divided):
        return None
    product = scores.products[0]
    core = AttentionCore(
        query=product.query.value,
        key=product.key.value,
        value=value,
        output=graph.results(last)[0],
        scale=scores.scale * product.factor,
        first=product.node,
        last=last,
        bias=scores.bias,
        sink=scores.sink,
        unsupported=_unsupported(softmax, scores),
        nodes=(*scores.nodes, *softmax.nodes, last),
    )
    before = _axes_before(variables, scores)
    read = with_values(graph, core, softmax.made, axes, before, sink_first=scores.sink_first)
    if softmax.divided is not None:
        output = graph.results(softmax.divided)[0]
        core = replace(core, output=output, last=softmax.divided)
    return _without_widening(graph, variables, ReadCore(core, read))


def _dividend(graph: Graph, node: Node) -> Node | None:
    """The node that makes what another divides."""
    operation = graph.operation(node)
    return graph.producer(operation.left) if isinstance(operation, op.Quotient) else None


def _unsupported(softmax: Normalised, scores: Scores) -> str:
    """What is done that no core can say; empty if nothing."""
    if scores.unsupported or not scores.is_one:
        return scores.unsupported or _SUMMED
    infinite = all(term.kind != "additive" and np.isinf(term.fill) for term in scores.bias)
    return _ROUNDED if softmax.rounded and scores.sink is None and not infinite else ""


def scores_before(
    graph: Graph, variables: Variables, softmax: Normalised
) -> tuple[Scores, Placement | None] | None:
    """What the scores of a softmax are a sum of, and their axes."""
    shape = graph.sizes(softmax.scores)
    axes = None if not shape else _score_axes(variables, shape, softmax.axis)
    start = At(softmax.scores, axes)
    if axes is None:
        why = "the shape of the scores is not known"
        start = start.lost(softmax.scores, why, softmax.nodes[0])
    scores = ScoresWalk(graph, variables).scores(start, depth=12)
    return None if scores is None else (scores, axes)


def _score_axes(variables: Variables, shape: tuple[object, ...], keys: int) -> Placement:
    """A variable for each axis of the scores, that of the tokens attended to among them."""
    keys %= len(shape)
    axes = tuple(
        variables.new(KEYS if place == keys else f"z{place}", size)
        for place, size in enumerate(shape)
    )
    variables.whole.update(variables.sizes)
    return axes


def _axes_before(variables: Variables, scores: Scores) -> CoreAxes:
    product = scores.products[0]
    lost = next((at for at in (product.query, product.key, scores.lost) if at and at.apart), None)
    read = CoreAxes(
        variables, product.query.axes or (), product.key.axes or (), bias=scores.bias_axes
    )
    return (
        read if lost is None else replace(read, apart=lost.apart, at=lost.lost_at, code=lost.code)
    )


def _without_widening(graph: Graph, variables: Variables, read: ReadCore) -> ReadCore:
    """The core between a query and an output of 16 bits, where it computes in a wider type.

    Before:   query --> cast --> attention --> cast --> output

    Decomposed attentions say so themselves; the operator sums in float32 of its own accord.
    """
    core = read.core
    node = graph.producer(core.query)
    widening = None if node is None else graph.operation(node)
    readers = graph.consumers(core.output)
    if not isinstance(widening, op.Cast) or len(readers) != 1 or graph.is_output(core.output):
        return read
    output = graph.results(readers[0])[0]
    narrow = graph.dtype(widening.data)
    narrows = isinstance(graph.operation(readers[0]), op.Cast) and graph.dtype(output) == narrow
    if not narrows or graph.dtype(core.query).itemsize <= narrow.itemsize:
        return read
    query, factor = peel_scale(graph, variables, At(widening.data, read.axes.query))
    wide = replace(
        core,
        query=query.value,
        output=output,
        last=readers[0],
        scale=core.scale * factor,
        nodes=(*core.nodes, readers[0]),
    )
    return ReadCore(wide, read.axes)
