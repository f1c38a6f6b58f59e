"""Numbers that a graph computes from fixed sizes, as some exporters write the scale 1/sqrt(D)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from mla_opt.graphs.onnx.integers import Integers, number
from mla_opt.handles import Array

_DEPTH = 12

_UNARY: dict[str, Callable[[float], float]] = {
    "Cast": float,
    "CastLike": float,
    "Identity": float,
    "Squeeze": float,
    "Unsqueeze": float,
    "Reshape": float,
    "Sqrt": math.sqrt,
    "Reciprocal": lambda value: 1.0 / value,
    "Neg": lambda value: -value,
}
_BINARY: dict[str, Callable[[float, float], float]] = {
    "Mul": lambda left, right: left * right,
    "Div": lambda left, right: left / right,
    "Pow": lambda left, right: left**right,
}


class Facts(Protocol):
    """What is known of values."""

    def integers(self, value: ir.Value) -> Integers | None:
        """Content of an integer value."""

    def small_constant(self, value: ir.Value) -> Array | None:
        """Content of a small stored tensor."""


def computed(facts: Facts, value: ir.Value, depth: int = _DEPTH) -> float | None:
    """Return the number, if it is one and the same at every size; else ``None``."""
    known = number(facts.integers(value))
    if isinstance(known, int):
        return float(known)
    array = facts.small_constant(value)
    if array is not None:
        return float(array.reshape(-1)[0]) if array.size == 1 else None
    node = value.producer()
    if node is None or node.domain or depth == 0:
        return None
    count = 1 if node.op_type in _UNARY else 2 if node.op_type in _BINARY else 0
    given = [each for each in node.inputs[:count] if each is not None]
    operands = [computed(facts, each, depth - 1) for each in given]
    first, second = (*operands, None, None)[:2]
    if first is None or count != len(given) or (count == 2 and second is None):
        return None
    try:
        if count == 1:
            return _UNARY[node.op_type](first)
        return _BINARY[node.op_type](first, second or 0.0)
    except (ArithmeticError, ValueError):
        return None
