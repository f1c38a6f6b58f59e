"""The table: what each operation does to axes, read from its result back to its operands.

For every operation that only moves elements, or is linear in one operand, a rule says what the axes
of that operand are, given those of the result. An operation without a row is where a walk ends. To
let walks go through one more kind of operation, add its rule here and a reader for its operators to
the adapters (:mod:`mla_opt.graphs.onnx.operations`, :mod:`mla_opt.graphs.torch.operations`).

| operation | axes of the operand | on the numbers |
|---|---|---|
| `Layout` with `Permuted` | the same, in another order | moved |
| `Layout` with `Reshaped` | the same atoms in the same order, grouped otherwise | moved |
| `Layout` with `Along` | the same; the axes named mixed, unless whole and from the front | moved |
| `Layout` with `Picked` | the same, and one more, mixed | moved |
| `Layout` with `Joined` | the same; the one joined along mixed, unless the rest is empty | moved |
| `Layout` with `Stacked` | the same without the new one, unless it may not be mixed | moved |
| `Layout` with `Put` | none but where a cache is written (:mod:`mla_opt.matching.region`) | moved |
| `Layout` with `Written` | as `Along`, for what is written and what it is written to | moved |
| `Broadcast` | the same where as large, none where of size one, else mixed | repeated |
| `Cast`, `Scaled`, `Shifted` | the same | rounded, times or plus a number |
| `ScaledBy`, `Add` with a constant | the same; the constant is even along tokens | affine |
| `Add` of two | the same for both | sum |
| `Linear` | the same along shared labels, mixed along the one summed over | linear |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import (
    ApartError,
    Atom,
    Axis,
    Placement,
    UnknownShapeError,
    Variables,
    regroup,
)

Shape = tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """What an operation reads whose elements appear in its result, and what its axes are."""

    value: Value
    axes: Placement


@dataclass(frozen=True, slots=True)
class Step:
    """One operation to be walked through: its result, and what the result's axes are."""

    graph: Graph
    variables: Variables
    node: Node
    result: Value
    axes: Placement

    def shape(self, value: Value) -> Shape:
        """Sizes of a value; raises `ApartError` where they are not known."""
        shape = self.graph.sizes(value)
        if shape is None:
            raise UnknownShapeError(f"the shape of {value.name} is not known")
        return shape


Rule = Callable[[Step, Any], Sequence[Operand]]


def operands(step: Step, operation: op.Operation) -> Sequence[Operand] | None:
    """What the result is made of, constants left out; ``None`` for an operation without a rule.

    Raises:
        ApartError: it does to an axis what cannot be followed.
    """
    rule = RULES.get(type(operation))
    return None if rule is None else rule(step, operation)


# Moves


def _layout(step: Step, operation: op.Layout) -> Sequence[Operand]:
    if operation.move is None:
        raise ApartError(operation.why or "where it moves elements to is not known")
    return _MOVES[type(operation.move)](step, operation.data, operation.move)


def _permuted(step: Step, data: tuple[Value, ...], move: op.Permuted) -> Sequence[Operand]:
    axes: list[Axis] = [()] * len(move.order)
    for place, axis in zip(move.order, step.axes):
        axes[place] = axis
    return (Operand(data[0], tuple(axes)),)


def _reshaped(step: Step, data: tuple[Value, ...], move: op.Reshaped) -> Sequence[Operand]:
    shape, after = step.shape(data[0]), step.shape(step.result)
    sized = (_of_size(step.variables.current(axis), size) for axis, size in zip(step.axes, after))
    atoms = [atom for axis in sized for atom in axis]
    return (Operand(data[0], regroup(step.variables, atoms, shape)),)


def _along(step: Step, data: tuple[Value, ...], move: op.Along) -> Sequence[Operand]:
    (value,) = data
    shape, after = step.shape(value), step.shape(step.result)
    axes = list(step.axes)
    for place, from_front in move.axes:
        if from_front and sizes.same(shape[place], after[place]):
            continue
        axes[place] = _mixed(step, place, shape[place], "takes some places of")
    return (Operand(value, tuple(axes)),)


def _mixed(step: Step, place: int, size: Expression, does: str) -> Axis:
    axis = step.variables.current(step.axes[place])
    return step.variables.mixed(axis, size, f"it {does} axis {place}, along which tokens lie")


def _picked(step: Step, data: tuple[Value, ...], move: op.Picked) -> Sequence[Operand]:
    shape = step.shape(data[0])
    size = shape[move.axis]
    if not isinstance(size, int):
        raise ApartError(f"it takes one place of axis {move.axis}, whose size varies")
    one: Axis = () if size == 1 else (Atom(size),)
    return (Operand(data[0], (*step.axes[: move.axis], one, *step.axes[move.axis :])),)


def _joined(step: Step, data: tuple[Value, ...], move: op.Joined) -> Sequence[Operand]:
    filled = [value for value in data if 0 not in step.shape(value)]
    if len(filled) == 1:
        return (Operand(filled[0], step.axes),)
    parts = []
    for value in filled:
        axes = list(step.axes)
        size = step.shape(value)[move.axis]
        axes[move.axis] = _mixed(step, move.axis, size, "joins")
        parts.append(Operand(value, tuple(axes)))
    return parts


def _stacked(step: Step, data: tuple[Value, ...], move: op.Stacked) -> Sequence[Operand]:
    _mixed(step, move.axis, 1, "stacks")
    axes = (*step.axes[: move.axis], *step.axes[move.axis + 1 :])
    return [Operand(value, axes) for value in data]


def _written(step: Step, data: tuple[Value, ...], move: op.Written) -> Sequence[Operand]:
    whole, piece = data
    shape, of_piece = step.shape(whole), step.shape(piece)
    axes = list(step.axes)
    of_written: list[Axis] = []
    for place, (axis, from_front) in enumerate(move.axes):
        if from_front and sizes.same(of_piece[place], shape[axis]):
            of_written.append(step.axes[axis])
            continue
        of_written.append(_mixed(step, axis, of_piece[place], "writes to some places of"))
        axes[axis] = _mixed(step, axis, shape[axis], "writes to some places of")
    untouched = {axis for axis, _ in move.axes}
    for axis in range(len(shape)):
        if axis not in untouched:  # the piece is written at one place of this axis
            axes[axis] = _mixed(step, axis, shape[axis], "writes to one place of")
    return Operand(whole, tuple(axes)), Operand(piece, tuple(of_written))


def _put(step: Step, data: tuple[Value, ...], move: op.Put) -> Sequence[Operand]:
    raise ApartError(f"it writes to places of axis {move.axis} that are computed")


_MOVES: dict[type, Callable[[Step, tuple[Value, ...], Any], Sequence[Operand]]] = {
    op.Permuted: _permuted,
    op.Reshaped: _reshaped,
    op.Along: _along,
    op.Picked: _picked,
    op.Joined: _joined,
    op.Stacked: _stacked,
    op.Written: _written,
    op.Put: _put,
}


# Broadcasting


def broadcast_axes(step: Step, value: Value) -> Placement:
    """The axes of an operand that is broadcast to the result, aligned from the right."""
    shape, after = step.shape(value), step.shape(step.result)
    offset = len(after) - len(shape)
    if offset < 0:
        raise ApartError(f"{value.name} has more axes than what it is broadcast to")
    axes: list[Axis] = []
    for place, size in enumerate(shape, offset):
        if size == 1:
            axes.append(())
        elif sizes.same(size, after[place]):
            axes.append(step.axes[place])
        elif not isinstance(size, int) and not isinstance(after[place], int):
            axes.append(_of_size(step.axes[place], size))
        else:
            axes.append(_mixed(step, place, size, "repeats"))
    return tuple(axes)


def _of_size(axis: Axis, size: Expression) -> Axis:
    """The axis under another name for its size (:func:`mla_opt.graphs.sizes.broadcast`)."""
    return (replace(axis[0], size=size),) if len(axis) == 1 else axis


def _broadcast(step: Step, operation: op.Broadcast) -> Sequence[Operand]:
    return (Operand(operation.data, broadcast_axes(step, operation.data)),)


# Elementwise


def _elementwise(step: Step, operation: op.Cast | op.Scaled | op.Shifted) -> Sequence[Operand]:
    return (Operand(operation.data, broadcast_axes(step, operation.data)),)


def _scaled_by(step: Step, operation: op.ScaledBy) -> Sequence[Operand]:
    _check_even(step, operation.factor, broadcast_axes(step, operation.factor))
    return (Operand(operation.data, broadcast_axes(step, operation.data)),)


def _sum(step: Step, operation: op.Add) -> Sequence[Operand]:
    parts = []
    for value in (operation.left, operation.right):
        axes = broadcast_axes(step, value)
        if step.graph.is_constant(value):
            _check_even(step, value, axes)
        else:
            parts.append(Operand(value, axes))
    return parts


def _check_even(step: Step, constant: Value, axes: Placement) -> None:
    """A stored tensor that differs from token to token makes tokens differ."""
    for place, axis in enumerate(axes):
        step.variables.tell_apart(step.result, axis)
        for atom in step.variables.current(axis):
            if not step.variables.may_mix(atom):
                raise ApartError(f"the stored {constant.name} varies along axis {place}, of tokens")


def _filled(step: Step, operation: op.Filled) -> Sequence[Operand]:
    return ()


# Products


def product_axes(
    step: Step,
    value: Value,
    labels: tuple[str, ...],
    axes: op.Contraction,
    summed: Mapping[str, Axis] | None = None,
) -> Placement:
    """The axes of one operand of a product; those summed over are mixed, or as ``summed`` says."""
    shape, places = step.shape(value), {label: at for at, label in enumerate(axes.result)}
    if len(shape) != len(labels) or len(step.axes) != len(axes.result):
        raise ApartError(f"{value.name} has another number of axes than the product reads")
    after = step.shape(step.result)
    result: list[Axis] = []
    for size, label in zip(shape, labels):
        if size == 1:
            result.append(())
        elif label not in places:
            given = None if summed is None else summed.get(label)
            result.append(_summed(size) if given is None else _of_size(given, size))
        elif sizes.same(size, after[places[label]]):
            result.append(step.axes[places[label]])
        else:
            raise ApartError(f"the sizes of axis {places[label]} cannot be told to be the same")
    return tuple(result)


def _summed(size: Expression) -> Axis:
    if not isinstance(size, int):
        raise ApartError("it sums over an axis whose size varies")
    return (Atom(size),)


def _linear(step: Step, operation: op.Linear) -> Sequence[Operand]:
    axes = operation.axes
    if axes is None:
        raise UnknownShapeError("which axes it multiplies is not known")
    if not operation.packed:
        for place, axis in enumerate(product_axes(step, operation.weight, axes.second, axes)):
            step.variables.tell_apart(step.result, axis)
            if not all(step.variables.may_mix(atom) for atom in step.variables.current(axis)):
                raise ApartError(f"its stored weight varies along axis {place}, of tokens")
    return (Operand(operation.data, product_axes(step, operation.data, axes.first, axes)),)


RULES: dict[type, Rule] = {
    op.Layout: _layout,
    op.Broadcast: _broadcast,
    op.Cast: _elementwise,
    op.Scaled: _elementwise,
    op.Shifted: _elementwise,
    op.ScaledBy: _scaled_by,
    op.Add: _sum,
    op.Filled: _filled,
    op.Linear: _linear,
}
