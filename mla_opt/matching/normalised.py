"""Softmax in every way of writing it: one operator, or exponentials divided by their sum.

    softmax(x)            exp(log_softmax(x))            e / sum(e), e = exp(x)

What is subtracted from ``x`` to keep exponentials small is among the scores
(:mod:`mla_opt.matching.scores`).
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value


@dataclass(frozen=True, slots=True)
class Normalised:
    """``made``, the softmax of ``scores`` over ``axis``, counted from the end, by ``nodes``."""

    scores: Value
    made: Value
    axis: int
    nodes: tuple[Node, ...]


def normalised(graph: Graph, node: Node) -> Normalised | None:
    """The softmax whose last node this is, if it is one."""
    made = graph.results(node)[0]
    match graph.operation(node):
        case op.Softmax(data, axis, logarithm) if not logarithm:
            return Normalised(data, made, axis, (node,))
        case op.Exponential(data):
            return _of_logarithms(graph, node, made, data)
        case op.Quotient(left, right):
            return _divided(graph, node, left, right)
        case _:
            return None


def _of_logarithms(graph: Graph, node: Node, made: Value, data: Value) -> Normalised | None:
    before = graph.producer(data)
    operation = None if before is None else graph.operation(before)
    if before is None or not isinstance(operation, op.Softmax) or not operation.logarithm:
        return None
    return Normalised(operation.data, made, operation.axis, (before, node))


def _divided(graph: Graph, node: Node, left: Value, right: Value) -> Normalised | None:
    """Exponentials by the sum of the very same along one axis."""
    maker, summing = graph.producer(left), graph.producer(right)
    if maker is None or summing is None:
        return None
    exponential, total = graph.operation(maker), graph.operation(summing)
    if not isinstance(exponential, op.Exponential) or not isinstance(total, op.RowSum):
        return None
    if total.data is not left:
        return None
    nodes = (maker, summing, node)
    return Normalised(exponential.data, graph.results(node)[0], total.axis, nodes)
