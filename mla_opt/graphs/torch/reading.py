"""What the readers of aten operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx

from mla_opt.graphs import operations as op
from mla_opt.graphs.torch import moves
from mla_opt.graphs.torch.arguments import as_value
from mla_opt.graphs.torch.lifted_program import symbolic_shape
from mla_opt.handles import Value


class Facts(Protocol):
    """What has to be known of values to read the nodes between them."""

    def is_constant(self, value: fx.Node) -> bool:
        """Whether the value depends on stored tensors only."""

    def scalar(self, value: fx.Node) -> float | None:
        """The number that a stored tensor of one element holds."""


Reader = Callable[[Facts, fx.Node], op.Operation]

OPAQUE = op.Opaque()


def operator_name(node: fx.Node) -> str:
    """Name of a node's operator, without overload; empty for what is none of aten's or prims'."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in ("aten", "prims"):
        return ""
    return str(target._schema.name).rpartition("::")[2]


def operand(node: fx.Node, index: int, name: str = "") -> Any:
    """An argument by its place or its name; None where it is left out."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name)


def tensor_of(argument: Any) -> fx.Node | None:
    """The argument, if it is a tensor of the graph."""
    tensor = isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), torch.Tensor)
    return argument if tensor else None


def number_of(facts: Facts, argument: Any) -> float | None:
    """The number that an argument is or holds."""
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return float(argument)
    value = tensor_of(argument)
    return None if value is None else facts.scalar(value)


def layout_of(facts: Facts, node: fx.Node) -> op.Operation:
    """Anything that only moves the elements of its first operand."""
    data = tensor_of(operand(node, 0, "self"))
    return OPAQUE if data is None else moved_by(node, data)


def moved_by(node: fx.Node, *data: fx.Node, axis: int | None = None) -> op.Layout:
    """A layout operator, with what it does to axes."""
    move = moves.move_of(operator_name(node), node)
    handles = tuple(map(handle, data))
    if isinstance(move, str):
        return op.Layout(handles, axis, None, move)
    return op.Layout(handles, axis, move)


def handle(node: fx.Node) -> Value:
    """A node as a value of the graph protocol."""
    return as_value(node)


def rank_of(value: fx.Node) -> int:
    """Number of axes."""
    return len(symbolic_shape(value) or ())


def from_end(data: fx.Node, axis: int) -> int:
    """An axis counted from the end."""
    return axis - rank_of(data) if axis >= 0 else axis
