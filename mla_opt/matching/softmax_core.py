"""An attention in nodes of its own: a softmax between two matrix products."""

from __future__ import annotations

from dataclasses import replace

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node
from mla_opt.matching.axes import Placement, Variables
from mla_opt.matching.core_axes import KEYS, At, CoreAxes, ReadCore
from mla_opt.matching.scores import peel_scale, peel_scales, scores_of
from mla_opt.matching.weighted_values import weighted_values, with_values
from mla_opt.sites import AttentionCore


def softmax_core(graph: Graph, node: Node, softmax: op.Softmax) -> ReadCore | None:
    """The attention around a softmax; ``None`` if it is none."""
    variables = Variables()
    made = graph.results(node)[0]
    shape = graph.sizes(softmax.data)
    axes = None if not shape else _score_axes(variables, shape)
    start = At(softmax.data, axes)
    if axes is None:
        start = start.lost(softmax.data, "the shape of the scores is not known", node)
    scores = scores_of(graph, variables, start, depth=12)
    weighted = weighted_values(graph, made, depth=6)
    if scores is None or weighted is None:
        return None
    last, value = weighted
    query, key, scale = peel_scales(graph, variables, scores)
    core = AttentionCore(
        query=query.value,
        key=key.value,
        value=value,
        output=graph.results(last)[0],
        scale=scale,
        first=scores.first,
        last=last,
        bias=scores.bias,
        sink=scores.sink,
        nodes=(*scores.nodes, node, last),
    )
    read = CoreAxes(
        variables,
        query.axes or (),
        key.axes or (),
        bias=scores.bias_axes,
        apart=query.apart or key.apart,
        at=query.lost_at or key.lost_at,
        code=query.code if query.apart else key.code,
    )
    read = with_values(graph, core, made, axes, read)
    return _without_widening(graph, variables, ReadCore(core, read))


def _score_axes(variables: Variables, shape: tuple[object, ...]) -> Placement:
    """A variable for each axis of the scores, the last of them the tokens attended to."""
    axes = [variables.new(f"z{place}", size) for place, size in enumerate(shape[:-1])]
    axes.append(variables.new(KEYS, shape[-1]))
    variables.whole.update(variables.sizes)
    return tuple(axes)


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
