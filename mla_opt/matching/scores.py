"""From the softmax back: what the scores are a sum of.

    scores = sum of  factor * query part @ key part^T  +  sum of  factor * bias        masks over it

A row's maximum that is taken off drops out of the softmax. Scales and masks may come in any order;
a mask that is scaled afterwards forbids as before, as long as what it fills scores with still does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Placement, Variables
from mla_opt.matching.axis_rules import Step, operands
from mla_opt.matching.core_axes import KEYS, At, is_named, through
from mla_opt.matching.score_product import Product, StoredScale, product_of
from mla_opt.sites import BiasTerm

_NEVER = -1e4
"""A score this low or lower, chosen by a mask, means: do not attend."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the walk from the softmax back to the products of queries and keys has collected.

    Attributes:
        products: what is summed.
        total: their sum; ``at`` is the node that makes it.
        scale: what the sum is multiplied by afterwards.
        bias, bias_axes: addends and masks.
        sink: one more logit a head, stored, or a number for all.
        sink_first: whether its column is in front of the keys.
        shifted: whether something that all keys share was taken off, which sinks would not get.
        lost: where it was lost which token is which, if it was.
        unsupported: what is done that no core can say; empty if nothing.
    """

    products: tuple[Product, ...]
    total: At
    at: Node
    scale: float = 1.0
    bias: tuple[BiasTerm, ...] = ()
    bias_axes: tuple[Placement, ...] = ()
    sink: Value | float | None = None
    sink_first: bool = False
    shifted: bool = False
    lost: At | None = None
    unsupported: str = ""
    nodes: tuple[Node, ...] = field(default=())

    @property
    def in_total(self) -> tuple[Product, ...]:
        """The products, the scale of their sum among their factors."""
        return tuple(replace(each, factor=each.factor * self.scale) for each in self.products)

    @property
    def is_one(self) -> bool:
        """Whether there is one product, whose factor is a number."""
        return len(self.products) == 1 and not self.products[0].scales

    @property
    def plain(self) -> bool:
        """Whether there is nothing but products."""
        return not self.bias and self.sink is None and not self.shifted and not self.unsupported


@dataclass(frozen=True, slots=True)
class ScoresWalk:
    """The walk back from the scores of one softmax."""

    graph: Graph
    variables: Variables

    def scores(self, at: At, depth: int) -> Scores | None:
        """What a value is as scores; ``None`` where it is none."""
        node = self.graph.producer(at.value)
        rule = None if node is None else _RULES.get(type(self.graph.operation(node)))
        if node is None or rule is None or depth == 0:
            return None
        found = rule(_Place(self, at, node, depth - 1), self.graph.operation(node))
        return None if found is None else replace(found, nodes=(*found.nodes, node))

    def is_row_maximum(self, at: At, of: Value) -> bool:
        """Whether a value is the largest score of a query: it has no axis of keys, then."""
        node = self.graph.producer(at.value)
        operation = None if node is None else self.graph.operation(node)
        names = set(self.variables.names(KEYS))
        atoms = (atom for axis in at.axes or () for atom in self.variables.current(axis))
        if any(atom.variables & names for atom in atoms) or node is None:
            return False
        largest = isinstance(operation, op.RowMaximum) and operation.data is of
        return largest and self.graph.results(node)[0] is at.value


@dataclass(frozen=True, slots=True)
class _Place:
    """A node of the walk, and its result."""

    walk: ScoresWalk
    at: At
    node: Node
    depth: int

    def operand(self, value: Value) -> At:
        """An operand that is broadcast to the result."""
        return through(self.walk.graph, self.walk.variables, self.at, self.node, value)

    def back(self, value: Value) -> Scores | None:
        """An operand as scores."""
        return self.walk.scores(self.operand(value), self.depth)


def _of_product(place: _Place, product: op.MatMul) -> Scores | None:
    found = product_of(place.walk.graph, place.walk.variables, place.at, place.node, product)
    only = Scores((found,), place.at, place.node)
    if product.addend is None:
        return only
    return _summed(place, only, product.addend, product.addend_factor)


def _of_scaled(place: _Place, scaled: op.Scaled) -> Scores | None:
    found = place.back(scaled.data)
    return None if found is None else _times(found, scaled.factor)


def _times(found: Scores, factor: float) -> Scores | None:
    """Scores times a number: every addend of them, and what masks put in their place."""
    if factor == 1.0:
        return found
    masks = [term for term in found.bias if term.kind != "additive"]
    forbids = factor > 0 and all(term.fill * factor <= _NEVER for term in masks)
    if found.sink is not None or (masks and not forbids):
        return None
    bias = tuple(_scaled_term(term, factor) for term in found.bias)
    return replace(found, scale=found.scale * factor, bias=bias)


def _scaled_term(term: BiasTerm, factor: float) -> BiasTerm:
    if term.kind == "additive":
        return replace(term, factor=term.factor * factor)
    return replace(term, fill=term.fill * factor)


def _of_stored_scale(place: _Place, scaled: op.ScaledBy) -> Scores | None:
    """Products times a stored tensor; biases would be other ones behind it."""
    found = place.back(scaled.data)
    if found is None or not found.plain:
        return None
    scale = StoredScale(place.operand(scaled.factor), scaled.divides)
    products = tuple(replace(each, scales=(*each.scales, scale)) for each in found.products)
    return replace(found, products=products, total=place.at, at=place.node)


def _of_cast(place: _Place, cast: op.Cast) -> Scores | None:
    return place.back(cast.data)


def _of_sum(place: _Place, add: op.Add) -> Scores | None:
    left = place.back(add.left)
    if left is not None:
        return _summed(place, left, add.right, 1.0)
    right = place.back(add.right)
    return None if right is None else _summed(place, right, add.left, 1.0)


def _of_difference(place: _Place, subtract: op.Subtract) -> Scores | None:
    left = place.back(subtract.left)
    if left is not None:
        if place.walk.is_row_maximum(place.operand(subtract.right), subtract.left):
            return replace(left, shifted=left.sink is None)
        return _summed(place, left, subtract.right, -1.0)
    right = place.back(subtract.right)
    negative = None if right is None else _times(right, -1.0)
    return None if negative is None else _summed(place, negative, subtract.left, 1.0)


def _summed(place: _Place, found: Scores, value: Value, factor: float) -> Scores | None:
    """Scores plus something, times a factor: more products, or a bias."""
    at = place.operand(value)
    other = place.walk.scores(at, place.depth)
    if other is not None:
        other = _times(other, factor)
        return None if other is None else _with_products(place, found, other)
    return _with_bias(found, BiasTerm("additive", value, factor=factor), at)


def _with_products(place: _Place, found: Scores, other: Scores) -> Scores:
    """The sum of two that are both made of products."""
    mixed = "" if found.plain and other.plain else "it masks some of the products that it sums"
    return replace(
        found,
        products=(*found.in_total, *other.in_total),
        total=place.at,
        at=place.node,
        scale=1.0,
        lost=found.lost or other.lost,
        unsupported=found.unsupported or mixed,
        nodes=(*found.nodes, *other.nodes),
    )


def _of_selection(place: _Place, select: op.Select) -> Scores | None:
    ways = (
        (select.chosen, select.other, "boolean"),
        (select.other, select.chosen, "blocked"),
    )
    for scores, fill, kind in ways:
        level = _level(place.walk.graph, fill)
        found = None if level is None else place.back(scores)
        if found is not None and level is not None:
            term = BiasTerm(kind, select.condition, fill=level)
            return _with_bias(found, term, place.operand(select.condition))
    return None


def _with_bias(found: Scores, term: BiasTerm, at: At) -> Scores | None:
    """Scores with one more addend or mask; the column of a sink would get it, too."""
    if found.sink is not None:
        return None
    lost = at if at.axes is None and found.lost is None else found.lost
    axes = (*found.bias_axes, at.axes or ())
    return replace(found, lost=lost, bias=(*found.bias, term), bias_axes=axes)


def _level(graph: Graph, fill: Value) -> float | None:
    """The number that a mask puts in the place of scores, if it means: do not attend."""
    level = _number(graph, fill)
    return level if level is not None and level <= _NEVER else None


def _number(graph: Graph, value: Value) -> float | None:
    """The number that a tensor has everywhere, whatever its shape, if it is known."""
    while (content := graph.constant(value)) is None:
        producer = graph.producer(value)
        match None if producer is None else graph.operation(producer):
            case op.Filled(number):
                return number
            case op.Broadcast(data):
                value = data
            case _:
                return None
    return float(content.reshape(-1)[0]) if content.size == 1 else None


# Moves, and sinks


def _of_layout(place: _Place, layout: op.Layout) -> Scores | None:
    """The scores moved as a whole, or with one more column: the sink."""
    data = layout.data
    if len(data) == 1:
        padded = _padded(place, layout)
        return padded or place.walk.scores(_moved(place, layout), place.depth)
    if len(data) != 2:
        return None
    for scores, column in (data, (data[1], data[0])):
        sink = _head_vector(place, column)
        if sink is not None:
            at = _without_column(place, scores, _is_joined(place, layout, column))
            lost = sink if sink.apart else None
            return _with_sink(place, at, sink.value, lost=lost, first=column is data[0])
    return None


def _is_joined(place: _Place, layout: op.Layout, column: Value) -> bool:
    """Whether a column of one place is joined to the last axis."""
    size = place.walk.graph.sizes(column)
    last = len(place.at.axes or ()) - 1
    return size is not None and size[-1] == 1 and layout.move == op.Joined(last)


def _padded(place: _Place, layout: op.Layout) -> Scores | None:
    """The scores with a column of zeros, if that is what a layout does."""
    last = len(place.at.axes or ()) - 1
    match layout.move:
        case op.Along(((axis, _),), _, ((1, 0) | (0, 1)) as ends) if axis == last:
            at = _without_column(place, layout.data[0], True)
            return _with_sink(place, at, 0.0, lost=None, first=ends == (1, 0))
    return None


def _with_sink(
    place: _Place, at: At, sink: Value | float, *, lost: At | None, first: bool
) -> Scores | None:
    """The scores at a place, which one more column is put beside."""
    found = place.walk.scores(at, place.depth)
    if found is None or found.sink is not None or found.shifted:
        return None
    return replace(found, sink=sink, sink_first=first, lost=found.lost or lost)


def _moved(place: _Place, layout: op.Layout) -> At:
    return _back(place, place.at, place.node, layout, layout.data[0])


def _without_column(place: _Place, scores: Value, joined: bool) -> At:
    """The scores beside a column of sinks, if it is ``joined``: their tokens are one fewer."""
    at = place.at
    graph, variables = place.walk.graph, place.walk.variables
    if at.axes is None:
        return replace(at, value=scores)
    shape = graph.sizes(scores)
    if not joined or shape is None or not is_named(at.axes[-1], KEYS):
        return at.lost(scores, "what is joined to the scores is no column of sinks", place.node)
    variables.sizes[KEYS] = shape[-1]
    axes = (*at.axes[:-1], variables.new(KEYS, shape[-1]))
    return replace(at, value=scores, axes=axes)


def _head_vector(place: _Place, column: Value) -> At | None:
    """The stored vector behind a column of sinks: each head's own number, whatever the sizes."""
    graph = place.walk.graph
    at = replace(place.at, value=column, axes=place.at.axes and (*place.at.axes[:-1], ()))
    while not graph.is_constant(at.value):
        node = graph.producer(at.value)
        operation = None if node is None else graph.operation(node)
        match operation:
            case op.Layout((data,)) | op.Broadcast(data) | op.Cast(data):
                assert node is not None
                at = _back(place, at, node, operation, data)
            case _:
                return None
    return at


def _back(place: _Place, at: At, node: Node, operation: op.Operation, data: Value) -> At:
    """The only operand of an operation, with its axes as far as they can be followed."""
    if at.axes is None:
        return replace(at, value=data)
    step = Step(place.walk.graph, place.walk.variables, node, at.value, at.axes)
    try:
        (read,) = operands(step, operation) or (None,)
    except ApartError as error:
        return at.lost(data, error, node)
    if read is None:
        return at.lost(data, "what it does to axes is not known", node)
    return replace(at, value=data, axes=read.axes)


_Rule = Callable[[_Place, Any], Scores | None]

_RULES: dict[type, _Rule] = {
    op.MatMul: _of_product,
    op.Scaled: _of_scaled,
    op.ScaledBy: _of_stored_scale,
    op.Cast: _of_cast,
    op.Add: _of_sum,
    op.Subtract: _of_difference,
    op.Select: _of_selection,
    op.Layout: _of_layout,
}
