"""Shapes of what is left of an axis: sums, the largest, the first few."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.shape_rules.facts import (
    Facts,
    Shape,
    attribute,
    axis_of,
    numbers_at,
    operand,
    replaced,
    shape_at,
)
from mla_opt.graphs.sizes import Expression


def of_reduced(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """Reductions: axes are one, or gone."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    axes = numbers_at(facts, node, 1, "axes")
    if axes is None:
        if operand(node, 1) is not None:
            return ()
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else list(range(len(shape)))
    return (_without(shape, axes, bool(attribute(node, "keepdims", 1))),)


def of_arg(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``ArgMax`` and ``ArgMin``: one axis is one, or gone."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    return (_without(shape, [attribute(node, "axis", 0)], bool(attribute(node, "keepdims", 1))),)


def _without(shape: Shape, axes: list[Expression], keep: bool) -> Shape | None:
    places = {axis_of(axis, len(shape)) if isinstance(axis, int) else None for axis in axes}
    if None in places:
        return None
    if keep:
        return tuple(1 if axis in places else size for axis, size in enumerate(shape))
    return tuple(size for axis, size in enumerate(shape) if axis not in places)


def of_top(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``TopK``: one axis is that long."""
    shape, count = shape_at(facts, node, 0), numbers_at(facts, node, 1)
    if shape is None:
        return ()
    axis = axis_of(attribute(node, "axis", -1), len(shape))
    if axis is None:
        return ()
    size = facts.unknown() if not count else count[0]
    return [replaced(shape, axis, size)] * 2
