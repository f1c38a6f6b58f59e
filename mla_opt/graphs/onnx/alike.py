"""Whether two values of an ONNX graph are the same in every call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mla_opt.graphs.onnx.stored import is_random
from mla_opt.handles import Array

Stored = Callable[[ir.Value], Array | None]
"""The content of a small stored tensor; ``None`` for all other values."""


def alike(one: ir.Value, other: ir.Value, stored: Stored) -> bool:
    """Whether two values are one, store the same numbers, or are computed alike of the same."""
    pending, seen = [(one, other)], set()
    while pending:
        pair = pending.pop()
        if pair[0] is pair[1] or pair in seen:
            continue
        seen.add(pair)
        operands = _of_same_operator(*pair)
        if operands is not None:
            pending.extend(operands)
        elif not _same_numbers(*map(stored, pair)):
            return False
    return True


def _same_numbers(mine: Array | None, theirs: Array | None) -> bool:
    return mine is not None and theirs is not None and np.array_equal(mine, theirs)


def _of_same_operator(one: ir.Value, other: ir.Value) -> list[tuple[ir.Value, ir.Value]] | None:
    """What the nodes of two values read, pairwise, if both nodes do the same with that."""
    first, second = one.producer(), other.producer()
    if first is None or second is None or first.op_identifier() != second.op_identifier():
        return None
    if is_random(first) or one.index() != other.index():
        return None
    if dict(first.attributes) != dict(second.attributes) or not first.inputs:
        return None
    if [each is None for each in first.inputs] != [each is None for each in second.inputs]:
        return None
    return [(a, b) for a, b in zip(first.inputs, second.inputs) if a is not None and b is not None]
