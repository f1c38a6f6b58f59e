"""Shapes of operators that compute each number by itself, or along an axis that stays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.shape_rules.facts import Facts, Shape, shape_at


def broadcast_shapes(shapes: Sequence[Shape]) -> Shape:
    """NumPy's broadcasting, of calls that succeed."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(reduce(sizes.broadcast, column) for column in zip(*padded))


def of_elementwise(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """Operands broadcast to each other."""
    shapes = [facts.shape(value) for value in node.inputs if value is not None]
    known = [shape for shape in shapes if shape is not None]
    return () if len(known) < len(shapes) else (broadcast_shapes(known),)


def of_like_first(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """As the first operand."""
    return (shape_at(facts, node, 0),)


def of_normalized(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """The first output is as large as the first operand; nobody reads the others' shapes."""
    return (shape_at(facts, node, 0),)
