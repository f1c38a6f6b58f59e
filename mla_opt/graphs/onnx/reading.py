"""What the readers of ONNX operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import onnx_ir as ir

from mla_opt.graphs import operations as op
from mla_opt.graphs.onnx import moves
from mla_opt.handles import Array


class Facts(moves.Facts, Protocol):
    """What has to be known of values to read the nodes between them."""

    def is_constant(self, value: ir.Value) -> bool:
        """Whether the value depends on stored tensors only."""

    def small_constant(self, value: ir.Value) -> Array | None:
        """Content of a stored tensor that is small enough to be read while matching."""

    def stored_number(self, value: ir.Value) -> float | None:
        """The number of a tensor of one element that is computed from stored tensors only."""

    def rank(self, value: ir.Value) -> int | None:
        """Number of axes; ``None`` where it cannot be told."""

    def width(self, value: ir.Value) -> int | None:
        """Size of the last axis; ``None`` where it cannot be told."""


Reader = Callable[[Facts, ir.Node], op.Operation]

OPAQUE = op.Opaque()


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An operand by its place; ``None`` where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: int | float) -> int | float:
    """A number among the attributes."""
    given = node.attributes.get(name)
    return default if given is None else given.value
