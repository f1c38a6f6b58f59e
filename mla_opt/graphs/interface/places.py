"""Inputs that say where in a buffer new rows are written, told by what the graph does with them.

places [S] or [B, S] --> ... --> indices of ScatterND, ScatterElements
start [] or [B]      --> TensorScatter; Range(start, start + S) --> ...
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

MOVED = frozenset({"Identity", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Expand"})
"""Between places and the indices that they are repeated for."""

INDICES = {"ScatterND": 1, "ScatterElements": 1}
"""Which operand the indices are."""

STARTS = {"TensorScatter": 2, "Range": 0}
"""Which operand is the first of the places."""

MAX_STEPS = 10


def is_place(value: ir.Value) -> bool:
    """Whether an input holds a place for every new token."""
    return any(INDICES.get(node.op_type) == place for node, place in _uses(value))


def is_start(value: ir.Value) -> bool:
    """Whether an input holds the place of the first new token, of all sequences or of each."""
    if value.shape is None or value.shape.rank() > 1:
        return False
    return any(STARTS.get(node.op_type) == place for node, place in _uses(value))


def _uses(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """The uses of a value, moved; of indices that are put together it is the last coordinate."""
    frontier, seen = [value], {value}
    for _ in range(MAX_STEPS):
        following: list[ir.Value] = []
        for known in frontier:
            for node, place in known.uses():
                yield node, place
                last = node.op_type == "Concat" and place == len(node.inputs) - 1
                moved = node.op_type in MOVED and place == 0
                if (moved or last) and node.outputs[0] not in seen:
                    seen.add(node.outputs[0])
                    following.append(node.outputs[0])
        frontier = following
