"""Shapes of operators that move numbers, and keep or repeat all of them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.integers import vector
from mla_opt.graphs.onnx.shape_rules.elementwise import broadcast_shapes
from mla_opt.graphs.onnx.shape_rules.facts import (
    Facts,
    Shape,
    attribute,
    axis_of,
    numbers_at,
    operand,
    replaced,
    shape_at,
    unknown_sizes,
)
from mla_opt.graphs.sizes import Expression


def of_transpose(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Transpose``: axes in another order, reversed unless told."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    order = attribute(node, "perm") or tuple(reversed(range(len(shape))))
    valid = sorted(order) == list(range(len(shape)))
    return (tuple(shape[axis] for axis in order),) if valid else ()


def of_reshape(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Reshape``: as asked; -1 is what is left, 0 copies."""
    shape, target = shape_at(facts, node, 0), operand(node, 1)
    wanted = None if target is None else vector(facts.integers(target))
    if target is None:
        return ()
    if wanted is None:
        return unknown_sizes(facts, facts.shape(target))
    return (_reshaped(facts, shape, wanted, bool(attribute(node, "allowzero", 0))),)


def _reshaped(
    facts: Facts, shape: Shape | None, wanted: list[Expression], allow_zero: bool
) -> Shape:
    result: list[Expression | None] = []
    for place, size in enumerate(wanted):
        if size == 0 and not allow_zero:
            known = shape is not None and place < len(shape)
            size = shape[place] if known and shape is not None else facts.unknown()
        result.append(None if size == -1 else size)
    if None not in result:
        return tuple(result)
    rest = None
    if shape is not None and result.count(None) == 1:
        others = sizes.product(size for size in result if size is not None)
        rest = sizes.quotient(sizes.product(shape), others)
    return tuple(
        (facts.unknown() if rest is None else rest) if size is None else size for size in result
    )


def of_expand(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Expand``: broadcast to what is asked."""
    shape, wanted = shape_at(facts, node, 0), numbers_at(facts, node, 1)
    if shape is None:
        return ()
    if wanted is None:
        return unknown_sizes(facts, shape_at(facts, node, 1), len(shape))
    return (broadcast_shapes([shape, tuple(wanted)]),)


def of_tile(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Tile``: each axis so many times."""
    shape, repeats = shape_at(facts, node, 0), numbers_at(facts, node, 1)
    if shape is None:
        return ()
    if repeats is None or len(repeats) != len(shape):
        return (tuple(facts.unknown() for _ in shape),)
    return (tuple(sizes.product(pair) for pair in zip(shape, repeats)),)


def of_concat(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Concat``: one axis is a sum."""
    shapes = [facts.shape(value) for value in node.inputs if value is not None]
    if not shapes or any(shape is None for shape in shapes):
        return ()
    known = [shape for shape in shapes if shape is not None]
    axis = axis_of(attribute(node, "axis", 0), len(known[0]))
    if axis is None or any(len(shape) != len(known[0]) for shape in known):
        return ()
    total: Expression = 0
    for shape in known:
        total = total + shape[axis]
    return (replaced(known[0], axis, sizes.plain(total)),)


def of_unsqueeze(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Unsqueeze``: axes of one more."""
    shape, axes = shape_at(facts, node, 0), numbers_at(facts, node, 1, "axes")
    if shape is None or axes is None or not all(isinstance(axis, int) for axis in axes):
        return ()
    rank = len(shape) + len(axes)
    places = {axis_of(axis, rank) for axis in axes}
    if None in places or len(places) != len(axes):
        return ()
    rest = iter(shape)
    return (tuple(1 if place in places else next(rest) for place in range(rank)),)


def of_squeeze(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Squeeze``: axes of one fewer."""
    shape, axes = shape_at(facts, node, 0), numbers_at(facts, node, 1, "axes")
    if shape is None:
        return ()
    if axes is None:
        if operand(node, 1) is not None or not all(isinstance(size, int) for size in shape):
            return ()
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    places = {axis_of(axis, len(shape)) for axis in axes}
    return (tuple(size for axis, size in enumerate(shape) if axis not in places),)


def of_split(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Split``: one axis in parts, even unless told."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    axis = axis_of(attribute(node, "axis", 0), len(shape))
    if axis is None:
        return ()
    count = len(node.outputs)
    parts = numbers_at(facts, node, 1, "split")
    if parts is None and operand(node, 1) is None:
        size = shape[axis]
        whole = sizes.quotient(size, count)
        if whole is not None:
            parts = [whole] * count
        elif isinstance(size, int):
            most = -(-size // count)
            parts = [most] * (count - 1) + [size - most * (count - 1)]
    if parts is None or len(parts) != count:
        parts = [facts.unknown() for _ in range(count)]
    return [replaced(shape, axis, part) for part in parts]


def of_flatten(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Flatten``: two axes."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    axis = attribute(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return ((sizes.product(shape[:axis]), sizes.product(shape[axis:])),)


def of_pad(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Pad``: axes grow by what is before and after."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    pads = pads_of(facts, node)
    if pads is None:
        return (tuple(facts.unknown() for _ in shape),)
    return (
        tuple(
            facts.unknown()
            if before is None or after is None
            else sizes.plain(size + before + after)
            for size, (before, after) in zip(shape, pads)
        ),
    )


def pads_of(
    facts: Facts, node: ir.Node
) -> list[tuple[Expression | None, Expression | None]] | None:
    """What a Pad adds before and after each axis; ``None`` where the axes are not known."""
    shape = shape_at(facts, node, 0)
    amounts = numbers_at(facts, node, 1, "pads")
    if shape is None or amounts is None:
        return None
    axes = list(range(len(shape)))
    if operand(node, 3) is not None:
        given = numbers_at(facts, node, 3)
        if given is None or not all(isinstance(axis, int) for axis in given):
            return None
        axes = [axis_of(axis, len(shape)) or 0 for axis in given]
    if len(amounts) != 2 * len(axes):
        return None
    pads: list[tuple[Expression | None, Expression | None]] = [(0, 0)] * len(shape)
    for place, axis in enumerate(axes):
        pads[axis] = (amounts[place], amounts[len(axes) + place])
    return pads
