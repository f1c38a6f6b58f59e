"""One product of queries and keys: which operand is which, and its constant factor."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node
from mla_opt.matching.axes import ApartError, Placement, UnknownShapeError, Variables
from mla_opt.matching.axis_rules import Step, product_axes
from mla_opt.matching.core_axes import KEYS, At, through


@dataclass(frozen=True, slots=True)
class StoredScale:
    """A stored tensor that scores are multiplied by, or divided by."""

    at: At
    divides: bool


@dataclass(frozen=True, slots=True)
class Product:
    """``factor * query @ key^T`` for every query and key, summed over the width of both.

    ``scales`` are stored tensors, which may have a number for each head.
    """

    node: Node
    query: At
    key: At
    factor: float
    scales: tuple[StoredScale, ...] = ()


def product_of(
    graph: Graph, variables: Variables, at: At, node: Node, product: op.MatMul
) -> Product:
    """The product that makes a value; constant factors of its operands are its own."""
    left, right = replace(at, value=product.left), replace(at, value=product.right)
    if at.axes is not None:
        try:
            left, right = _told_apart(graph, variables, at, node, product)
        except ApartError as error:
            left, right = left.lost(left.value, error, node), right
    query, on_query = peel_scale(graph, variables, left)
    key, on_key = peel_scale(graph, variables, right)
    return Product(node, query, key, product.factor * on_query * on_key)


def peel_scale(graph: Graph, variables: Variables, at: At) -> tuple[At, float]:
    """What a value is before constant factors, and the product of those."""
    factor = 1.0
    while True:
        node = graph.producer(at.value)
        operation = None if node is None else graph.operation(node)
        if node is None or not isinstance(operation, op.Scaled):
            return at, factor
        at, factor = through(graph, variables, at, node, operation.data), factor * operation.factor


def _told_apart(
    graph: Graph, variables: Variables, at: At, node: Node, product: op.MatMul
) -> tuple[At, At]:
    """Query and key, by who has the tokens attended to."""
    assert at.axes is not None
    if product.axes is None:
        raise UnknownShapeError("which axes are multiplied is not known")
    step = Step(graph, variables, node, at.value, at.axes)
    axes = product.axes
    left = At(product.left, product_axes(step, product.left, axes.first, axes))
    right = At(product.right, product_axes(step, product.right, axes.second, axes))
    keys = set(variables.names(KEYS))
    of_left, of_right = (_names_in(variables, each.axes or ()) & keys for each in (left, right))
    if of_left and not of_right:
        left, right = right, left
    elif of_left or (keys and not of_right and variables.sizes.get(KEYS, 1) != 1):
        raise ApartError("query and keys cannot be told apart")
    return left, right


def _names_in(variables: Variables, axes: Placement) -> set[str]:
    return {name for axis in axes for atom in variables.current(axis) for name in atom.variables}
