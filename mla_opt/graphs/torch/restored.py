"""A slice that takes back what was just put there, and a part that is all of what it is put into.

slice(slice_scatter(x, part, 0, 0, B), 0, 0, B)  is  part
slice_scatter(x, part, 0, 0, B)                  is  part, where x has B places
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mla_opt.graphs.torch.alike import alike
from mla_opt.graphs.torch.arguments import argument, from_front, rank_at
from mla_opt.graphs.torch.lifted_program import symbolic_shape

aten = torch.ops.aten


def put_there(node: fx.Node) -> fx.Node | None:
    """What a slice takes back, or all that a write leaves; ``None`` if there is no such."""
    if node.target is aten.slice.Tensor:
        return _taken_back(node)
    if node.target is aten.slice_scatter.default:
        whole, part = argument(node, 0, "self"), argument(node, 1, "src")
        return part if symbolic_shape(whole) == symbolic_shape(part) else None
    return None


def _taken_back(node: fx.Node) -> fx.Node | None:
    write = argument(node, 0, "self")
    if not isinstance(write, fx.Node) or write.target is not aten.slice_scatter.default:
        return None
    mine, theirs = _bounds(node, 1), _bounds(write, 2)
    same = mine[0] == theirs[0] and all(map(_same, mine[1:], theirs[1:]))
    part = argument(write, 1, "src")
    return part if same and symbolic_shape(part) == symbolic_shape(node) else None


def _bounds(node: fx.Node, place: int) -> tuple[int, Any, Any, Any]:
    """Axis, start, end and step, from an argument on."""
    names = ("dim", "start", "end", "step")
    axis, start, end, step = (argument(node, place + at, name) for at, name in enumerate(names))
    return from_front(axis or 0, rank_at(node)), start or 0, end, 1 if step is None else step


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, fx.Node) and isinstance(other, fx.Node):
        return alike(one, other)
    return not isinstance(one, fx.Node) and not isinstance(other, fx.Node) and bool(one == other)
