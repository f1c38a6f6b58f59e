"""What a rule is told of a node, and how it reads operands and attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import onnx_ir as ir

from mla_opt.graphs.onnx.integers import Integers, vector
from mla_opt.graphs.sizes import Expression

Shape = tuple[Expression, ...]

MOST_AXES = 64
"""Axes that a tensor may have: a file can ask for 2^31."""


class Facts(Protocol):
    """What is known of the operands."""

    def shape(self, value: ir.Value) -> Shape | None:
        """Sizes of a value."""

    def integers(self, value: ir.Value) -> Integers | None:
        """Content of an integer value."""

    def unknown(self) -> Expression:
        """A size that is equal to itself only."""


def operand(node: ir.Node, place: int) -> ir.Value | None:
    """One operand; ``None`` where it is absent."""
    return node.inputs[place] if place < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The value of an attribute."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def shape_at(facts: Facts, node: ir.Node, place: int) -> Shape | None:
    """Shape of one operand."""
    value = operand(node, place)
    return None if value is None else facts.shape(value)


def numbers_at(
    facts: Facts, node: ir.Node, place: int, name: str | None = None
) -> list[Expression] | None:
    """Integers given as an operand, or as an attribute in older opsets."""
    if name is not None and name in node.attributes:
        given = node.attributes[name].value
        return [given] if isinstance(given, int) else list(given)
    value = operand(node, place)
    return None if value is None else vector(facts.integers(value))


def axis_of(axis: int, rank: int) -> int | None:
    """A place counted from the front; ``None`` where there is no such axis."""
    axis = axis + rank if axis < 0 else axis
    return axis if 0 <= axis < rank else None


def replaced(shape: Shape, axis: int, size: Expression) -> Shape:
    """A shape with another size in one place."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def unknown_sizes(facts: Facts, asked: Shape | None, least: int = 0) -> Sequence[Shape | None]:
    """A shape of which only the rank is known: the length of what asks for it, ``[rank]``."""
    rank = asked[0] if asked else None
    if not isinstance(rank, int) or rank > MOST_AXES:
        return ()
    return (tuple(facts.unknown() for _ in range(max(rank, least))),)


Rule = Callable[[Facts, ir.Node], Sequence[Shape | None]]
