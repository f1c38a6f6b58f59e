"""What ONNX's layout operators do to axes, at every size, in the words of `operations.Move`.

Each function returns the move of one node, or says in words why it is not known. Places that follow
from sizes are known as expressions, but are no move: they are others from call to call, on axes of
heads or of width, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.integers import Columns, Entries, Integers, Ramp, as_ramp
from mla_opt.graphs.onnx.shape_rules.facts import attribute, axis_of, numbers_at, operand
from mla_opt.graphs.onnx.shape_rules.layout import pads_of
from mla_opt.graphs.onnx.shape_rules.slices import spans_of
from mla_opt.graphs.sizes import Expression

Move = op.Move | str
Spans = dict[int, tuple[Expression | None, Expression | None, Expression | None]]


class Facts(Protocol):
    """What has to be known of values to tell what a node does to their axes."""

    def shape(self, value: ir.Value) -> tuple[Expression, ...] | None:
        """Sizes of a value."""

    def integers(self, value: ir.Value) -> Integers | None:
        """Content of an integer value."""

    def unknown(self) -> Expression:
        """A size that is equal to itself only."""

    def is_constant(self, value: ir.Value) -> bool:
        """Whether the value depends on stored tensors only."""


def move_of(facts: Facts, node: ir.Node) -> Move:
    """Return what a layout operator does to the axes of its data, or why that is not known."""
    rule = RULES.get(node.op_type)
    return f"{node.op_type} has no rule" if rule is None else rule(facts, node)


def _rank(facts: Facts, value: ir.Value | None) -> int | None:
    shape = None if value is None else facts.shape(value)
    return None if shape is None else len(shape)


_NO_RANK = "the number of axes is not known"
_NOT_OF_SIZES = "what its indices are does not follow from sizes alone"
_OF_SIZES = "which places it takes follows from sizes, and differs from call to call"


def _are_numbers(*places: Expression | None) -> bool:
    return all(isinstance(place, int) for place in places)


def _is_fixed(facts: Facts, index: ir.Value) -> bool:
    """Whether indices are the same in every call."""
    if facts.is_constant(index):
        return True
    content = facts.integers(index)
    if isinstance(content, Entries):
        return _are_numbers(*content.array.reshape(-1))
    return isinstance(content, Ramp) and _are_numbers(content.start, *content.steps)


def _same(facts: Facts, node: ir.Node) -> Move:
    return op.Along(())


def _reshape(facts: Facts, node: ir.Node) -> Move:
    return op.Reshaped()


def _transpose(facts: Facts, node: ir.Node) -> Move:
    rank = _rank(facts, operand(node, 0))
    if rank is None:
        return _NO_RANK
    return op.Permuted(tuple(attribute(node, "perm") or reversed(range(rank))))


def _slice(facts: Facts, node: ir.Node) -> Move:
    spans = spans_of(facts, node)
    if spans is None:
        return "the axes it slices are not known"
    if not all(_are_numbers(start, step) for start, _, step in spans.values()):
        return _OF_SIZES
    axes = tuple((axis, bounds[0] == 0 and bounds[2] == 1) for axis, bounds in spans.items())
    stops = operand(node, 2)
    first = len(axes) == 1 and axes[0][1] and stops is not None and not facts.is_constant(stops)
    return op.Along(axes, stops if first else None, _cut_ends(facts, node, spans))


_FAR = 1 << 30
"""A stop this large means: to the end."""


def _cut_ends(facts: Facts, node: ir.Node, spans: Spans) -> tuple[int, int] | None:
    """How many places a slice of one axis leaves out at its ends, as numbers below 0."""
    shape = facts.shape(node.inputs[0]) if node.inputs[0] is not None else None
    if shape is None or len(spans) != 1:
        return None
    ((axis, (start, stop, step)),) = spans.items()
    if step != 1 or not isinstance(start, int) or start < 0 or stop is None:
        return None
    if isinstance(stop, int) and stop < 0:
        return -start, stop
    whole = isinstance(stop, int) and stop >= _FAR
    behind = 0 if whole else sizes.difference(stop, shape[axis])
    return (-start, behind) if isinstance(behind, int) and behind <= 0 else None


def _split(facts: Facts, node: ir.Node) -> Move:
    rank = _rank(facts, operand(node, 0))
    axis = None if rank is None else axis_of(attribute(node, "axis", 0), rank)
    if axis is None:
        return _NO_RANK
    if operand(node, 1) is not None and not _are_numbers(*(numbers_at(facts, node, 1) or [None])):
        return _OF_SIZES
    return op.Along(((axis, len(node.outputs) == 1),))


def _pad(facts: Facts, node: ir.Node) -> Move:
    pads = pads_of(facts, node)
    if pads is None:
        return "how much it pads is not known"
    if not _are_numbers(*(before for before, _ in pads)):
        return _OF_SIZES
    padded = [(axis, pair) for axis, pair in enumerate(pads) if pair != (0, 0)]
    axes = tuple((axis, before == 0) for axis, (before, _) in padded)
    front, back = padded[0][1] if len(padded) == 1 else (None, None)
    known = isinstance(front, int) and isinstance(back, int)
    return op.Along(axes, None, (int(front or 0), int(back or 0)) if known else None)


def _gather(facts: Facts, node: ir.Node) -> Move:
    data, index = operand(node, 0), operand(node, 1)
    rank = _rank(facts, data)
    axis = None if rank is None else axis_of(attribute(node, "axis", 0), rank)
    count = None if index is None else _rank(facts, index)
    if axis is None or count is None or index is None:
        return _NO_RANK
    if count > 1:
        return "its indices have more than one axis"
    if not _is_fixed(facts, index):
        return _OF_SIZES
    if count == 0:
        return op.Picked(axis)
    ramp = as_ramp(facts.integers(index), 1)
    return op.Along(((axis, ramp is not None and ramp == Ramp(0, (1,))),))


def _concat(facts: Facts, node: ir.Node) -> Move:
    rank = _rank(facts, node.outputs[0])
    axis = None if rank is None else axis_of(attribute(node, "axis", 0), rank)
    return _NO_RANK if axis is None else op.Joined(axis)


def _scatter_nd(facts: Facts, node: ir.Node) -> Move:
    """Which axis of the data each axis of the updates is, by the coordinates it is written to."""
    data, indices, updates = (operand(node, place) for place in range(3))
    rank, of_updates = _rank(facts, data), _rank(facts, updates)
    shape = None if indices is None else facts.shape(indices)
    if rank is None or of_updates is None or not shape or indices is None:
        return _NO_RANK
    depth, places = shape[-1], len(shape) - 1
    if not isinstance(depth, int) or not 0 < depth <= rank or of_updates != places + rank - depth:
        return "how many coordinates its indices have is not known"
    columns = _columns(facts.integers(indices), depth, places)
    if columns is None:
        return _put(facts, node, depth) or _NOT_OF_SIZES
    if not _are_numbers(*(each for ramp in columns for each in (ramp.start, *ramp.steps))):
        return _OF_SIZES
    axes = [_written_along(columns, place, shape[place]) for place in range(places)]
    known = [axis for axis in axes if axis is not None]
    if len(known) < len(axes) or len({axis for axis, _ in known}) != depth:
        return "its indices do not have one axis for each coordinate"
    return op.Written((*known, *((axis, True) for axis in range(depth, rank))))


def _put(facts: Facts, node: ir.Node, depth: int) -> op.Put | None:
    """Rows written along one axis to places that are computed; all of the axes in front of it."""
    whole, indices = operand(node, 0), operand(node, 1)
    shape = None if whole is None else facts.shape(whole)
    counted = None if indices is None else facts.shape(indices)
    if indices is None or shape is None or counted is None or len(counted) != depth + 1:
        return None
    parts = _coordinates(facts, indices, depth)
    ahead = [
        sizes.same(counted[place], shape[place])
        and _is_place(_column(facts, part, depth), place, counted[place])
        for place, part in enumerate(parts[:-1])
    ]
    if not parts or not all(ahead):
        return None
    return op.Put(depth - 1, parts[-1], (*range(depth), None))


def _coordinates(facts: Facts, indices: ir.Value, depth: int) -> list[ir.Value]:
    """The coordinates of indices that are put together from one tensor for each, else none."""
    if depth == 1:
        return [indices]
    node = indices.producer()
    given = () if node is None or node.op_type != "Concat" else node.inputs
    shapes = [(part, facts.shape(part)) for part in given if part is not None]
    parts = [part for part, shape in shapes if shape and shape[-1] == 1]
    return parts if len(parts) == len(given) == depth else []


def _column(facts: Facts, part: ir.Value, depth: int) -> Ramp | None:
    ramp = as_ramp(facts.integers(part), depth + 1)
    return None if ramp is None else Ramp(ramp.start, ramp.steps[:-1])


def _is_place(ramp: Ramp | None, place: int, size: Expression) -> bool:
    """Whether a coordinate is the place on one axis of the indices, from 0 on."""
    if ramp is None or ramp.start != 0:
        return False
    steps = tuple(int(at == place) for at in range(len(ramp.steps)))
    return ramp.steps == steps or (size == 1 and not any(ramp.steps))


def _columns(content: Integers | None, depth: int, places: int) -> tuple[Ramp, ...] | None:
    """The ramps of the coordinates; of stored ones whatever order they come in, on one axis."""
    if isinstance(content, Columns):
        return content.ramps if len(content.ramps) == depth else None
    if isinstance(content, Entries) and content.array.ndim == places + 1:
        ramps = [as_ramp(Entries(content.array[..., column]), places) for column in range(depth)]
        known = tuple(ramp for ramp in ramps if ramp is not None)
        if len(known) == depth:
            return known
        stored = _are_numbers(*content.array.reshape(-1))
        return (Ramp(0, (_ANY_ORDER,)),) if stored and depth == places == 1 else None
    if isinstance(content, Ramp) and depth == 1:
        return (Ramp(content.start, content.steps[:-1]),)
    return None


_ANY_ORDER = -(1 << 40)
"""A step that stands for stored numbers in no order: it is not 1, and that is all that matters."""


def _written_along(
    columns: tuple[Ramp, ...], place: int, size: Expression
) -> tuple[int, bool] | None:
    """The coordinate that alone moves along one axis of the indices."""
    moving = [axis for axis, ramp in enumerate(columns) if ramp.steps[place] != 0]
    if len(moving) > 1:
        return None
    if not moving:
        return _still(columns, place) if size == 1 else None
    ramp = columns[moving[0]]
    alone = all(step == 0 for at, step in enumerate(ramp.steps) if at != place)
    return (moving[0], ramp.start == 0 and ramp.steps[place] == 1) if alone else None


def _still(columns: tuple[Ramp, ...], place: int) -> tuple[int, bool] | None:
    """An axis of one place: it belongs to the coordinate that moves along no other axis."""
    free = [
        axis
        for axis, ramp in enumerate(columns)
        if not any(ramp.steps) and axis not in _taken(columns)
    ]
    order = [at for at in range(len(columns[0].steps)) if all(r.steps[at] == 0 for r in columns)]
    turn = order.index(place)
    if turn >= len(free):
        return None
    return free[turn], columns[free[turn]].start == 0


def _taken(columns: tuple[Ramp, ...]) -> set[int]:
    return {axis for axis, ramp in enumerate(columns) if any(ramp.steps)}


def _scatter_elements(facts: Facts, node: ir.Node) -> Move:
    """Along one axis the indices say where; along all others from the front."""
    data, indices = operand(node, 0), operand(node, 1)
    rank = _rank(facts, data)
    axis = None if rank is None else axis_of(attribute(node, "axis", 0), rank)
    if rank is None or axis is None or indices is None:
        return _NO_RANK
    ramp = as_ramp(facts.integers(indices), rank)
    if ramp is None:
        return _put_elements(facts, node, rank, axis) or _NOT_OF_SIZES
    if any(step != 0 for place, step in enumerate(ramp.steps) if place != axis):
        return _NOT_OF_SIZES
    if not _are_numbers(ramp.start, *ramp.steps):
        return _OF_SIZES
    front = ramp.start == 0 and ramp.steps[axis] == 1
    return op.Written(tuple((place, place != axis or front) for place in range(rank)))


def _put_elements(facts: Facts, node: ir.Node, rank: int, axis: int) -> op.Put | None:
    """Rows written along one axis to places that are computed, number by number."""
    indices, updates = operand(node, 1), operand(node, 2)
    if indices is None or not _has_rows_of(facts, node, axis, updates):
        return None
    if not _has_rows_of(facts, node, axis, indices):
        return None
    return op.Put(axis, indices, tuple(range(rank)))


def _has_rows_of(facts: Facts, node: ir.Node, axis: int, rows: ir.Value | None) -> bool:
    """Whether rows are as large as the first operand, but for how many there are."""
    whole = operand(node, 0)
    shape = None if whole is None else facts.shape(whole)
    other = None if rows is None else facts.shape(rows)
    if shape is None or other is None or len(shape) != len(other):
        return False
    return all(
        place == axis or sizes.same(one, size)
        for place, (one, size) in enumerate(zip(shape, other))
    )


def _tensor_scatter(facts: Facts, node: ir.Node) -> Move:
    """Rows written one behind the other, from a place of each sequence on."""
    starts, mode = operand(node, 2), node.attributes.get("mode")
    rank = _rank(facts, operand(node, 0))
    axis = None if rank is None else axis_of(attribute(node, "axis", -2), rank)
    if axis is None:
        return _NO_RANK
    if mode is not None and mode.value != "linear":
        return "its places begin again where the buffer ends"
    if starts is None:
        return "it writes to the front in every call"
    if not axis or not _has_rows_of(facts, node, axis, operand(node, 1)):
        return "its rows are not as large as those of the buffer, as far as can be told"
    return op.Put(axis, starts, (0,), run=True)


RULES: dict[str, Callable[[Facts, ir.Node], Move]] = {
    "Identity": _same,
    "Dropout": _same,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Gather": _gather,
    "Concat": _concat,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "TensorScatter": _tensor_scatter,
}
