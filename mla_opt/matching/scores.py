"""From the softmax back: scales, masks and sinks, to the product of query and key."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Placement, UnknownShapeError, Variables
from mla_opt.matching.axis_rules import Operand, Step, operands, product_axes
from mla_opt.matching.core_axes import KEYS, At, through
from mla_opt.sites import BiasTerm

_NEVER = -1e4
"""A score this low or lower, chosen by a mask, means: do not attend."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the walk from the softmax back to the product of query and key has collected."""

    first: Node
    query: At
    key: At
    scale: float = 1.0
    bias: tuple[BiasTerm, ...] = ()
    bias_axes: tuple[Placement, ...] = ()
    sink: Value | None = None
    nodes: tuple[Node, ...] = field(default=())


def scores_of(graph: Graph, variables: Variables, at: At, depth: int) -> Scores | None:
    """Walk back from the scores to the product of query and key."""
    node = graph.producer(at.value)
    if node is None or depth == 0:
        return None
    found = _scores_step(graph, variables, at, node, depth - 1)
    return None if found is None else replace(found, nodes=(*found.nodes, node))


def _scores_step(
    graph: Graph, variables: Variables, at: At, node: Node, depth: int
) -> Scores | None:
    def back(value: Value) -> Scores | None:
        return scores_of(graph, variables, there(value), depth)

    def there(value: Value) -> At:
        return through(graph, variables, at, node, value)

    match graph.operation(node):
        case op.MatMul() as product if product.addend is None:
            return _product(graph, variables, at, node, product)
        case op.Scaled(data, factor):
            found = back(data)
            # a factor outside a bias would scale the bias too: no exporter does that
            usable = found is not None and not found.bias
            return replace(found, scale=found.scale * factor) if found and usable else None
        case op.Cast(data):
            return back(data)
        case op.Add(left, right):
            for scores, bias in ((left, right), (right, left)):
                found = back(scores)
                if found is not None:
                    return _with_bias(found, BiasTerm("additive", bias), there(bias))
            return None
        case op.Select(condition, chosen, other):
            for scores, fill, kind in ((chosen, other, "boolean"), (other, chosen, "blocked")):
                level = _level(graph, fill)
                found = None if level is None else back(scores)
                if found is not None and level is not None:
                    term = BiasTerm(kind, condition, fill=level)
                    return _with_bias(found, term, there(condition))
            return None
        case op.Subtract(left, right):
            return back(left) if _is_row_maximum(graph, right) else None
        case op.Layout() as layout:
            return _through_layout(graph, variables, at, node, layout, depth)
        case _:
            return None


def peel_scales(graph: Graph, variables: Variables, scores: Scores) -> tuple[At, At, float]:
    """Take constant factors off both operands of the product: they belong to the scale."""
    query, on_query = peel_scale(graph, variables, scores.query)
    key, on_key = peel_scale(graph, variables, scores.key)
    return query, key, scores.scale * on_query * on_key


def peel_scale(graph: Graph, variables: Variables, at: At) -> tuple[At, float]:
    """What a value is before constant factors, and the product of those."""
    factor = 1.0
    while True:
        node = graph.producer(at.value)
        operation = None if node is None else graph.operation(node)
        if node is None or not isinstance(operation, op.Scaled):
            return at, factor
        at, factor = through(graph, variables, at, node, operation.data), factor * operation.factor


def _product(graph: Graph, variables: Variables, at: At, node: Node, product: op.MatMul) -> Scores:
    """Query and key, told apart by who has the tokens attended to."""
    left, right = replace(at, value=product.left), replace(at, value=product.right)
    if at.axes is not None:
        try:
            left, right = _operands_of_product(graph, variables, at, node, product)
        except ApartError as error:
            left, right = left.lost(left.value, error, node), right
    return Scores(first=node, query=left, key=right, scale=product.factor)


def _operands_of_product(
    graph: Graph, variables: Variables, at: At, node: Node, product: op.MatMul
) -> tuple[At, At]:
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


def _with_bias(found: Scores, term: BiasTerm, at: At) -> Scores:
    query = found.query
    if at.axes is None and not query.apart:
        query = replace(at, value=query.value)
    axes = (*found.bias_axes, at.axes or ())
    return replace(found, query=query, bias=(*found.bias, term), bias_axes=axes)


def _level(graph: Graph, fill: Value) -> float | None:
    """The number that a mask puts in the place of scores, if it means: do not attend."""
    content = graph.constant(fill)
    level = float(content.reshape(-1)[0]) if content is not None and content.size == 1 else 0.0
    return level if level <= _NEVER else None


def _is_row_maximum(graph: Graph, value: Value) -> bool:
    node = graph.producer(value)
    return node is not None and isinstance(graph.operation(node), op.RowMaximum)


def _through_layout(
    graph: Graph, variables: Variables, at: At, node: Node, layout: op.Layout, depth: int
) -> Scores | None:
    """The scores moved as a whole, or with one more column: the sink."""
    data = layout.data
    if len(data) == 1:
        return scores_of(graph, variables, _moved(graph, variables, at, node, layout), depth)
    if len(data) != 2:
        return None
    sink = _head_vector(graph, data[1])
    inner = _without_column(graph, variables, at, node, layout)
    found = None if sink is None else scores_of(graph, variables, inner, depth)
    if found is None or found.sink is not None:
        return None
    return replace(found, sink=sink)


def _moved(graph: Graph, variables: Variables, at: At, node: Node, layout: op.Layout) -> At:
    if at.axes is None:
        return replace(at, value=layout.data[0])
    try:
        (operand,) = operands(Step(graph, variables, node, at.value, at.axes), layout) or (None,)
    except ApartError as error:
        return at.lost(layout.data[0], error, node)
    assert isinstance(operand, Operand)
    return replace(at, value=operand.value, axes=operand.axes)


def _without_column(
    graph: Graph, variables: Variables, at: At, node: Node, layout: op.Layout
) -> At:
    """The scores in front of a column of sinks: their tokens are one fewer."""
    scores = layout.data[0]
    if at.axes is None:
        return replace(at, value=scores)
    shape, column = graph.sizes(scores), graph.sizes(layout.data[1])
    last = len(at.axes) - 1
    keys = shape is not None and column is not None and column[-1] == 1
    if not keys or shape is None or layout.move != op.Joined(last):
        return at.lost(scores, "what is joined to the scores is no column of sinks", node)
    variables.sizes[KEYS] = shape[-1]
    axes = (*at.axes[:-1], variables.new(KEYS, shape[-1]))
    return replace(at, value=scores, axes=axes)


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
