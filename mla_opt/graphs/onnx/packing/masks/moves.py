"""Rules of operators that move elements: the place that an element comes from."""

from __future__ import annotations

import onnx_ir as ir
import sympy

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.packing.masks.elements import (
    Element,
    Place,
    Reader,
    UnreadMaskError,
    of_array,
    operand,
)
from mla_opt.graphs.onnx.shape_rules.facts import attribute, axis_of
from mla_opt.graphs.onnx.shape_rules.slices import spans_of
from mla_opt.graphs.sizes import Expression


def same(reader: Reader, node: ir.Node, place: Place) -> Element:
    """The same place."""
    value = node.inputs[0]
    assert value is not None
    return reader.at(value, place)


def expanded(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Axes of size one are repeated."""
    return operand(reader, node, place, 0)


def reshaped(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Axes of size one come and go; what else a reshape does is not followed."""
    value = node.inputs[0]
    assert value is not None
    return reader.at(value, _without_ones(reader, value, node.outputs[0], place))


def _without_ones(reader: Reader, before: ir.Value, after: ir.Value, place: Place) -> Place:
    old, new = reader.shape(before), reader.shape(after)
    if place is None or old is None or new is None:
        return None
    wide = [(size, at) for size, at in zip(new, place) if size != 1]
    kept = [size for size in old if size != 1]
    if len(kept) != len(wide) or not all(sizes.same(a, b[0]) for a, b in zip(kept, wide)):
        return None
    rest = iter(at for _, at in wide)
    return tuple(0 if size == 1 else next(rest) for size in old)


def transposed(reader: Reader, node: ir.Node, place: Place) -> Element:
    """The axes in another order."""
    value = node.inputs[0]
    assert value is not None
    if place is None:
        return reader.at(value, None)
    order = attribute(node, "perm") or tuple(reversed(range(len(place))))
    back = dict(zip(order, place))
    return reader.at(value, tuple(back[axis] for axis in range(len(order))))


def sliced(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Places from the start of the slice on."""
    value, spans = node.inputs[0], spans_of(reader.graph.facts, node)
    assert value is not None
    if place is None or spans is None:
        return reader.at(value, None)
    moved = list(place)
    for axis, (start, _, step) in spans.items():
        begin = reader.named(start) if start is not None else None
        known = step == 1 and begin is not None and sympy.sympify(begin).is_nonnegative
        at = moved[axis]
        moved[axis] = at + begin if known and at is not None else None
    return reader.at(value, tuple(moved))


def gathered(reader: Reader, node: ir.Node, place: Place) -> Element:
    """The place that the index has there, or any, where all are the same."""
    data, index = node.inputs[:2]
    assert data is not None and index is not None
    shapes = reader.shape(data), reader.shape(index)
    if place is None or shapes[0] is None or shapes[1] is None:
        return reader.at(data, None)
    axis = axis_of(attribute(node, "axis", 0), len(shapes[0])) or 0
    end = axis + len(shapes[1])
    try:
        taken = _counted(reader.at(index, place[axis:end]), shapes[0][axis])
    except UnreadMaskError:
        return reader.at(data, None)
    return reader.at(data, (*place[:axis], taken, *place[end:]))


def _counted(index: Element, size: Expression) -> Expression:
    """A place that is counted from the first. Raises `UnreadMaskError` where that is not told."""
    if isinstance(index, int) and index < 0:
        return size + index
    if not sympy.sympify(index).is_nonnegative:
        raise UnreadMaskError("a place may be counted from the last")
    return index


def looked_up(reader: Reader, node: ir.Node, place: Place) -> Element:
    """GatherND: by all coordinates, or anywhere, where all are the same."""
    data, index = node.inputs[:2]
    assert data is not None and index is not None
    shape, whole = reader.shape(index), reader.shape(data)
    if place is None or shape is None or whole is None or not isinstance(shape[-1], int):
        return reader.at(data, None)
    outer, count = place[: len(shape) - 1], shape[-1]
    if attribute(node, "batch_dims", 0):
        return reader.at(data, None)
    try:
        coordinates = tuple(
            _counted(reader.at(index, (*outer, number)), whole[number]) for number in range(count)
        )
    except UnreadMaskError:
        return reader.at(data, None)
    return reader.at(data, (*coordinates, *place[len(shape) - 1 :]))


def filled(reader: Reader, node: ir.Node, place: Place) -> Element:
    """One number everywhere."""
    tensor = attribute(node, "value")
    return 0.0 if tensor is None else of_array(tensor.numpy(), None, node.outputs[0])


def constant(reader: Reader, node: ir.Node, place: Place) -> Element:
    """Of a stored tensor."""
    content = reader.graph.small_constant(node.outputs[0])
    if content is None:
        raise UnreadMaskError(f"{node.outputs[0].name} is stored")
    return of_array(content, place, node.outputs[0])
