"""Arguments of aten operators, by place or name, and what is known of tensors among them."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

from mla_opt.graphs.torch.lifted_program import symbolic_shape
from mla_opt.handles import Value


def argument(node: fx.Node, index: int, name: str, default: Any = None) -> Any:
    """An argument by its place or its name."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def rank_at(node: fx.Node, place: int = 0) -> int:
    """Number of axes of a tensor among the arguments."""
    value = argument(node, place, "self")
    return len(symbolic_shape(value) or ()) if isinstance(value, fx.Node) else 0


def from_front(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis


def as_value(node: fx.Node) -> Value:
    """A node as a value of the graph protocol."""
    return cast(Value, node)
