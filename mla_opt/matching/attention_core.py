"""The attention cores of a graph: softmax between two matrix products, or one fused node.

    scores = scale * query @ key^T (+ bias ...)       bias: additive, boolean, or both
    output = softmax(scores [| sink]) @ value

A core is read outward from its softmax: backward to the product of query and key, forward to the
product with the values. Guards that exporters put around the softmax (casts, NaN to zero, the
maximum subtracted) change nothing of this and are part of the core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.sites import AttentionCore, BiasTerm

_NEVER = -1e4
"""A score this low or lower, chosen by a mask, means: do not attend."""


@dataclass(frozen=True, slots=True)
class _Scores:
    """What the walk from the softmax back to the product of query and key has collected."""

    first: Node
    query: Value
    key: Value
    scale: float = 1.0
    bias: tuple[BiasTerm, ...] = ()
    sink: Value | None = None
    nodes: tuple[Node, ...] = field(default=())


def attention_cores(graph: Graph) -> Iterator[AttentionCore]:
    """Yield every attention of the main graph, in graph order."""
    for node in graph.nodes():
        match graph.operation(node):
            case op.FusedAttention() as fused:
                yield _from_fused(node, fused)
            case op.Softmax() as softmax:
                core = _from_softmax(graph, node, softmax)
                if core is not None:
                    yield core
            case _:
                pass


def _from_fused(node: Node, fused: op.FusedAttention) -> AttentionCore:
    bias = () if fused.bias is None else (BiasTerm("either", fused.bias),)
    return AttentionCore(
        query=fused.query,
        key=fused.key,
        value=fused.value,
        output=fused.output,
        scale=fused.scale,
        first=node,
        last=node,
        bias=bias,
        causal=fused.causal,
        unsupported=fused.unsupported,
        nodes=(node,),
    )


def _from_softmax(graph: Graph, node: Node, softmax: op.Softmax) -> AttentionCore | None:
    scores = _scores(graph, softmax.data, depth=12)
    weighted = _weighted_values(graph, graph.results(node)[0], depth=6)
    if scores is None or weighted is None:
        return None
    last, value = weighted
    query, key, scale = _peel_scales(graph, scores)
    core = AttentionCore(
        query=query,
        key=key,
        value=value,
        output=graph.results(last)[0],
        scale=scale,
        first=scores.first,
        last=last,
        key_is_transposed=True,
        bias=scores.bias,
        sink=scores.sink,
        nodes=(*scores.nodes, node, last),
    )
    return _without_widening(graph, core)


def _without_widening(graph: Graph, core: AttentionCore) -> AttentionCore:
    """The core between a query and an output of 16 bits, where it computes in a wider type.

    Before:   query --> cast --> attention --> cast --> output

    Decomposed attentions say so themselves; the operator sums in float32 of its own accord.
    """
    node = graph.producer(core.query)
    widening = None if node is None else graph.operation(node)
    readers = graph.consumers(core.output)
    if not isinstance(widening, op.Cast) or len(readers) != 1 or graph.is_output(core.output):
        return core
    output = graph.results(readers[0])[0]
    narrow = graph.dtype(widening.data)
    narrows = isinstance(graph.operation(readers[0]), op.Cast) and graph.dtype(output) == narrow
    if not narrows or graph.dtype(core.query).itemsize <= narrow.itemsize:
        return core
    query, factor = _peel_scale(graph, widening.data)
    return replace(
        core,
        query=query,
        output=output,
        last=readers[0],
        scale=core.scale * factor,
        nodes=(*core.nodes, readers[0]),
    )


def _peel_scales(graph: Graph, scores: _Scores) -> tuple[Value, Value, float]:
    """Take constant factors off both operands of the product: they belong to the scale."""
    query, on_query = _peel_scale(graph, scores.query)
    key, on_key = _peel_scale(graph, scores.key)
    return query, key, scores.scale * on_query * on_key


def _peel_scale(graph: Graph, value: Value) -> tuple[Value, float]:
    factor = 1.0
    while True:
        node = graph.producer(value)
        operation = None if node is None else graph.operation(node)
        if not isinstance(operation, op.Scaled):
            return value, factor
        value, factor = operation.data, factor * operation.factor


def _scores(graph: Graph, value: Value, depth: int) -> _Scores | None:
    """Walk back from the scores to the product of query and key."""
    node = graph.producer(value)
    if node is None or depth == 0:
        return None
    found = _scores_step(graph, node, depth - 1)
    return None if found is None else replace(found, nodes=(*found.nodes, node))


def _scores_step(graph: Graph, node: Node, depth: int) -> _Scores | None:
    match graph.operation(node):
        case op.MatMul(left, right):
            return _Scores(first=node, query=left, key=right)
        case op.Scaled(data, factor):
            found = _scores(graph, data, depth)
            # a factor outside a bias would scale the bias too: no exporter does that
            usable = found is not None and not found.bias
            return replace(found, scale=found.scale * factor) if found and usable else None
        case op.Cast(data):
            return _scores(graph, data, depth)
        case op.Add(left, right):
            return _with_bias(graph, left, right, depth) or _with_bias(graph, right, left, depth)
        case op.Select(condition, chosen, other):
            return _masked(graph, condition, chosen, other, depth)
        case op.Subtract(left, right):
            return _scores(graph, left, depth) if _is_row_maximum(graph, right) else None
        case op.Layout(data):
            return _through_layout(graph, data, depth)
        case _:
            return None


def _with_bias(graph: Graph, scores: Value, bias: Value, depth: int) -> _Scores | None:
    found = _scores(graph, scores, depth)
    if found is None:
        return None
    return replace(found, bias=(*found.bias, BiasTerm("additive", bias)))


def _masked(
    graph: Graph, condition: Value, chosen: Value, other: Value, depth: int
) -> _Scores | None:
    for scores, fill, kind in ((chosen, other, "boolean"), (other, chosen, "blocked")):
        if not _forbids(graph, fill):
            continue
        found = _scores(graph, scores, depth)
        if found is not None:
            return replace(found, bias=(*found.bias, BiasTerm(kind, condition)))
    return None


def _forbids(graph: Graph, fill: Value) -> bool:
    content = graph.constant(fill)
    return content is not None and content.size == 1 and float(content.reshape(-1)[0]) <= _NEVER


def _is_row_maximum(graph: Graph, value: Value) -> bool:
    node = graph.producer(value)
    return node is not None and isinstance(graph.operation(node), op.RowMaximum)


def _through_layout(graph: Graph, data: tuple[Value, ...], depth: int) -> _Scores | None:
    """An identity, or the scores with one more column: the sink."""
    if len(data) == 1:
        return _scores(graph, data[0], depth)
    if len(data) != 2:
        return None
    found = _scores(graph, data[0], depth)
    sink = _head_vector(graph, data[1])
    if found is None or sink is None or found.sink is not None:
        return None
    return replace(found, sink=sink)


def _head_vector(graph: Graph, value: Value) -> Value | None:
    """The stored vector behind a column of sinks, through reshapes and broadcasts."""
    while not graph.is_constant(value):
        node = graph.producer(value)
        if node is None:
            return None
        match graph.operation(node):
            case op.Layout((data,)) | op.Broadcast(data) | op.Cast(data):
                value = data
            case _:
                return None
    return value


def _weighted_values(graph: Graph, value: Value, depth: int) -> tuple[Node, Value] | None:
    """Walk forward from the probabilities to their product with the values."""
    if depth == 0:
        return None
    for node in graph.consumers(value):
        match graph.operation(node):
            case op.MatMul(left, right) if left is value:
                return node, right
            case op.Cast() | op.Layout():
                found = _weighted_values(graph, graph.results(node)[0], depth - 1)
                if found is not None:
                    return found
            case op.Select() as select if _makes_nan_zero(graph, select, value):
                found = _weighted_values(graph, graph.results(node)[0], depth - 1)
                if found is not None:
                    return found
            case _:
                pass
    return None


def _makes_nan_zero(graph: Graph, select: op.Select, value: Value) -> bool:
    """Whether a selection is ``value``, but 0 where it is not a number.

    Any other selection among probabilities weighs the values differently: by a threshold or a
    window, perhaps, that a small example does not reach.
    """
    test = graph.producer(select.condition)
    operation = None if test is None else graph.operation(test)
    if not isinstance(operation, op.IsNan) or operation.data is not value:
        return False
    fill = graph.constant(select.chosen)
    return select.other is value and fill is not None and not fill.any()
