"""Softmax in every way of writing it: one operator, or exponentials divided by their sum.

    softmax(x)            exp(log_softmax(x))            e / sum(e), e = exp(x)

    exp(x - log(sum(exp(x))))        the logarithm whole, of exp(x - max(x)) and then max(x) added

    (e @ values) / sum(e)

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
    """``made``, the softmax of ``scores`` over ``axis``, counted from the end, by ``nodes``.

    ``divided`` is the node that divides by the sum only after the product with the values.
    ``rounded``: the logarithm of the sum is taken off, which is lost beside very large numbers: of
    scores that are all about as low as the type can say, each gets the weight 1.
    """

    scores: Value
    made: Value
    axis: int
    nodes: tuple[Node, ...]
    rounded: bool = False
    divided: Node | None = None


def normalised(graph: Graph, node: Node) -> Normalised | None:
    """The softmax whose last node this is, if it is one."""
    made = graph.results(node)[0]
    match graph.operation(node):
        case op.Softmax(data, axis, logarithm) if not logarithm:
            return Normalised(data, made, axis, (node,))
        case op.Exponential(data):
            return _of_logarithms(graph, node, made, data)
        case op.Quotient(left, right):
            return _divided(graph, node, left, right) or _divided_later(graph, node, left, right)
        case _:
            return None


def _of_logarithms(graph: Graph, node: Node, made: Value, data: Value) -> Normalised | None:
    before = graph.producer(data)
    operation = None if before is None else graph.operation(before)
    match operation:
        case op.Softmax(scores, axis, logarithm) if logarithm and before is not None:
            return Normalised(scores, made, axis, (before, node))
        case op.Subtract(scores, logarithm) if before is not None:
            total = _logarithm_of_sum(graph, scores, logarithm)
            if total is not None:
                nodes = (*total[1], before, node)
                return Normalised(scores, made, total[0], nodes, rounded=True)
    return None


_Total = tuple[int, tuple[Node, ...]]
"""An axis, counted from the end, and the nodes that sum along it."""


def _logarithm_of_sum(graph: Graph, scores: Value, value: Value) -> _Total | None:
    """The axis along which a value is the logarithm of the sum of ``exp(scores)``."""
    node = graph.producer(value)
    operation = None if node is None else graph.operation(node)
    match operation:
        case op.LogarithmOfSum(data, axis) if data is scores and node is not None:
            return axis, (node,)
        case op.Logarithm(total) if node is not None:
            found = _sum_of_exponentials(graph, scores, total)
            return None if found is None else (found[0], (*found[1], node))
        case op.Add(left, right) if node is not None:
            for largest, rest in ((left, right), (right, left)):
                found = _above_maximum(graph, scores, largest, rest)
                if found is not None:
                    return found[0], (*found[1], node)
    return None


def _sum_of_exponentials(graph: Graph, scores: Value, total: Value) -> _Total | None:
    summing = graph.producer(total)
    operation = None if summing is None else graph.operation(summing)
    if summing is None or not isinstance(operation, op.RowSum):
        return None
    maker = graph.producer(operation.data)
    exponential = None if maker is None else graph.operation(maker)
    if maker is None or not isinstance(exponential, op.Exponential):
        return None
    return (operation.axis, (maker, summing)) if exponential.data is scores else None


def _above_maximum(graph: Graph, scores: Value, largest: Value, rest: Value) -> _Total | None:
    """``largest + log(sum(exp(scores - largest)))``, of the largest scores along one axis."""
    maker, taking = graph.producer(largest), graph.producer(rest)
    maximum = None if maker is None else graph.operation(maker)
    logarithm = None if taking is None else graph.operation(taking)
    if not isinstance(maximum, op.RowMaximum) or not isinstance(logarithm, op.Logarithm):
        return None
    if maker is None or taking is None or maximum.data is not scores:
        return None
    if graph.results(maker)[0] is not largest:
        return None
    shifted = _shifted(graph, scores, largest)
    sums = (_sum_of_exponentials(graph, each, logarithm.data) for each in shifted)
    found = next((each for each in sums if each is not None), None)
    if found is None or found[0] != maximum.axis:
        return None
    return found[0], (maker, *found[1], taking)


def _shifted(graph: Graph, scores: Value, largest: Value) -> list[Value]:
    """Everything that is scores less the largest of them."""
    found: list[Value] = []
    for node in graph.consumers(scores):
        match graph.operation(node):
            case op.Subtract(left, right) if left is scores and right is largest:
                found += graph.results(node)[:1]
    return found


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


def _divided_later(graph: Graph, node: Node, left: Value, right: Value) -> Normalised | None:
    """A product of exponentials with values, by the sums of the very same: those of its rows."""
    multiplying, summing = graph.producer(left), graph.producer(right)
    if multiplying is None or summing is None:
        return None
    product, total = graph.operation(multiplying), graph.operation(summing)
    if not isinstance(product, op.MatMul) or not isinstance(total, op.RowSum):
        return None
    maker = graph.producer(total.data)
    exponential = None if maker is None else graph.operation(maker)
    if maker is None or not isinstance(exponential, op.Exponential):
        return None
    if product.left is not total.data or total.axis != -1 or not _keeps_rows(product):
        return None
    nodes = (maker, summing, node)
    return Normalised(exponential.data, total.data, -1, nodes, divided=node)


def _keeps_rows(product: op.MatMul) -> bool:
    """Whether a product is of rows, each with a matrix: all axes but the last stay in place."""
    axes = product.axes
    if axes is None or product.factor != 1.0 or product.addend is not None:
        return False
    *rows, summed = axes.first
    return list(axes.result[:-1]) == rows and summed not in axes.result
