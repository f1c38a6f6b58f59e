"""Which values can be told never to be negative, or never positive.

A grid whose zero is at its end cuts off one sign: of a value that may have it, the rounding is a
Relu as well, which quantizers make use of. That must not get lost with the rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mla_opt.handles import Array

MOST_READ = 4096
"""Elements of the largest stored tensor that is looked at."""
_DEEPEST = 24

_NEVER_NEGATIVE = frozenset(
    {"Softmax", "Sigmoid", "Exp", "Sqrt", "Abs", "Relu", "Softplus", "Shape", "Size"}
)
_FIRST = frozenset(
    {"Cast", "CastLike", "DequantizeLinear", "Expand", "Flatten", "Gather", "GatherElements"}
    | {"GatherND", "Identity", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"}
    | {"Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Those whose result has the sign of the first operand."""
_ALL = frozenset({"Add", "Concat", "Max", "Min", "Sum"})
"""Those whose result has the sign that all operands have."""


def never_negative(value: ir.Value) -> bool:
    """Whether no element can be below zero."""
    return _has_sign(value, 1, _DEEPEST)


def never_positive(value: ir.Value) -> bool:
    """Whether no element can be above zero."""
    return _has_sign(value, -1, _DEEPEST)


def _has_sign(value: ir.Value, sign: int, depth: int) -> bool:
    stored = _stored(value)
    if stored is not None:
        return bool(np.all(sign * stored.astype(np.float64) >= 0))
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or depth == 0:
        return False

    def operand(place: int, wanted: int = sign) -> bool:
        given = node.inputs[place] if place < len(node.inputs) else None
        return given is not None and _has_sign(given, wanted, depth - 1)

    kind = node.op_type
    if kind in _NEVER_NEGATIVE:
        return sign > 0
    if kind in _FIRST:
        return operand(0)
    if kind in _ALL:
        return all(operand(place) for place in range(len(node.inputs)))
    if kind == "Neg":
        return operand(0, -sign)
    if kind == "Where":
        return operand(1) and operand(2)
    if kind in ("Mul", "Div"):
        return _is_product_of_sign(node, sign, operand)
    return kind == "Pow" and sign > 0 and (operand(0) or _is_even(node))


def _is_product_of_sign(node: ir.Node, sign: int, operand: Callable[[int, int], bool]) -> bool:
    if sign > 0 and node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return True
    return any(operand(0, first) and operand(1, first * sign) for first in (1, -1))


def _is_even(node: ir.Node) -> bool:
    exponent = None if len(node.inputs) < 2 or node.inputs[1] is None else _stored(node.inputs[1])
    return exponent is not None and bool(np.all(exponent.astype(np.float64) % 2 == 0))


def _stored(value: ir.Value) -> Array | None:
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > MOST_READ or tensor.dtype == ir.DataType.STRING:
        return None
    return np.asarray(tensor.numpy())
