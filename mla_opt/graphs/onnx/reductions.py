"""Operators that make one place of an axis, which is kept: the largest number, or a sum."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from mla_opt.graphs import operations as op
from mla_opt.graphs.onnx.reading import OPAQUE, Facts, attribute, operand


def reduce_row(facts: Facts, node: ir.Node) -> op.Operation:
    """The largest number of one axis, its sum, or the logarithm of the sum of exponentials."""
    data = operand(node, 0)
    if data is None or not attribute(node, "keepdims", 1):
        return OPAQUE
    axes = _reduction_axes(facts, node)
    axis = None if axes is None or len(axes) != 1 else from_end(facts, data, axes[0])
    if axis is None:
        return OPAQUE
    return _REDUCED[node.op_type](data, axis)


_REDUCED: dict[str, Callable[[ir.Value, int], op.Operation]] = {
    "ReduceMax": op.RowMaximum,
    "ReduceSum": op.RowSum,
    "ReduceLogSumExp": op.LogarithmOfSum,
}


def _reduction_axes(facts: Facts, node: ir.Node) -> tuple[int, ...] | None:
    stored = node.attributes.get("axes")
    if stored is not None:
        return tuple(stored.value)
    given = operand(node, 1)
    array = None if given is None else facts.small_constant(given)
    return None if array is None else tuple(int(axis) for axis in array.reshape(-1))


def from_end(facts: Facts, value: ir.Value, axis: int) -> int | None:
    """An axis counted from the end; ``None`` where it cannot be told."""
    rank = facts.rank(value)
    if axis < 0 or rank is None:
        return axis if axis < 0 else None
    return axis - rank
