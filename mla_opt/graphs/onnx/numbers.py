"""Numbers that a graph computes from fixed sizes, as some exporters write the scale 1/sqrt(D)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import onnx_ir as ir

from mla_opt.graphs.onnx.integers import Integers, number
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Array

_DEPTH = 12

_UNARY: dict[str, Callable[[float], float]] = {
    "Identity": float,
    "Squeeze": float,
    "Unsqueeze": float,
    "Reshape": float,
    "Sqrt": math.sqrt,
    "Reciprocal": lambda value: 1.0 / value,
    "Neg": lambda value: -value,
}
_CASTS = ("Cast", "CastLike")
_BINARY: dict[str, Callable[[float, float], float]] = {
    "Mul": lambda left, right: left * right,
    "Div": lambda left, right: left / right,
    "Pow": math.pow,
}


class Facts(Protocol):
    """What is known of values."""

    def shape(self, value: ir.Value) -> tuple[Expression, ...] | None:
        """Sizes of a value."""

    def integers(self, value: ir.Value) -> Integers | None:
        """Content of an integer value."""

    def small_constant(self, value: ir.Value) -> Array | None:
        """Content of a small stored tensor."""


def computed(facts: Facts, value: ir.Value) -> float | None:
    """Return the number, if it is one and the same at every size; else ``None``."""
    return _computed(facts, value, _DEPTH, {})


def _computed(
    facts: Facts, value: ir.Value, depth: int, known: dict[ir.Value, float | None]
) -> float | None:
    """As above; every value is looked at once, however often it is read."""
    if value not in known:
        known[value] = None  # of what waits for itself there is no number
        known[value] = _decided(facts, value, depth, known)
    return known[value]


def _decided(
    facts: Facts, value: ir.Value, depth: int, known: dict[ir.Value, float | None]
) -> float | None:
    shape = facts.shape(value)
    if shape is not None and any(size != 1 for size in shape):
        return None
    integer = number(facts.integers(value))
    if isinstance(integer, int):
        return float(integer)
    array = facts.small_constant(value)
    if array is not None:
        return float(array.reshape(-1)[0]) if array.size == 1 else None
    node = value.producer()
    if node is None or node.domain or depth == 0 or _is_integer(value):
        return None
    count = 2 if node.op_type in _BINARY else 1 if node.op_type in (*_UNARY, *_CASTS) else 0
    operands: list[float] = []
    for each in node.inputs[:count]:
        one = None if each is None else _computed(facts, each, depth - 1, known)
        if one is None:
            return None
        operands.append(one)
    return _result(node, operands) if operands and len(operands) == count else None


def _is_integer(value: ir.Value) -> bool:
    """Whether operators on it count in whole numbers, which those here do not."""
    return value.dtype is not None and value.dtype.is_integer()


def _result(node: ir.Node, operands: list[float]) -> float | None:
    try:
        if node.op_type in _CASTS:
            return _cast(node, operands[0])
        if len(operands) == 1:
            return _UNARY[node.op_type](operands[0])
        return _BINARY[node.op_type](*operands)
    except (ArithmeticError, ValueError):
        return None


def _cast(node: ir.Node, given: float) -> float | None:
    """The number as the type holds it: integers cut what is behind the point."""
    if node.op_type == "Cast":
        kind: ir.DataType | None = ir.DataType(node.attributes.get_int("to", 0))
    else:
        like = node.inputs[1] if len(node.inputs) > 1 else None
        kind = None if like is None else like.dtype
    if kind is None or kind in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return None
    with np.errstate(all="ignore"):
        held = float(np.asarray(given).astype(kind.numpy()))
    return held if math.isfinite(held) else None
