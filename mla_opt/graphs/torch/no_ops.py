"""Which aten nodes return their first operand as it is, at every size.

Shapes, strides, types and devices must be the same by the symbols of the program, not by its
example: what makes a tensor dense that was not is needed by the views behind it. And a copy stays
where a caller could tell it from what it was made of: between an input, or a tensor that the
program keeps, and an output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import sympy
import torch
from torch import fx

from mla_opt.graphs.torch.lifted_program import expression, is_tensor
from mla_opt.graphs.torch.reading import operator_name
from mla_opt.graphs.torch.restored import put_there


class Facts(Protocol):
    """What has to be known of values."""

    def is_output(self, value: fx.Node) -> bool:
        """Whether the value is an output of the graph."""

    def results(self, node: fx.Node) -> Any:
        """What the node makes."""

    def scalar(self, value: fx.Node) -> float | None:
        """The number that a stored tensor of one element holds."""


Rule = Callable[[Facts, fx.Node], bool]


def unchanged(facts: Facts, node: fx.Node) -> fx.Node | None:
    """The operand that the node returns as it is; ``None`` where that is not proved."""
    name = operator_name(node)
    if name in NEUTRAL:
        data = _other_of_neutral(facts, node, name)
    else:
        rule = RULES.get(name)
        data = _first(node) if rule is not None and rule(facts, node) else None
    results = facts.results(node)
    if len(results) != 1:
        return None
    if data is None or not _look_alike(data, results[0]):
        data = put_there(node)
    if data is None or not _look_alike(data, results[0]):
        return None
    seen = _is_kept(_origin(data)) and _escapes(facts, results[0])
    return None if seen and name not in VIEWS else data


def _first(node: fx.Node) -> fx.Node | None:
    data = node.args[0] if node.args else node.kwargs.get("self")
    if isinstance(data, (list, tuple)) and len(data) == 1:
        (data,) = data
    return data if isinstance(data, fx.Node) and is_tensor(data) else None


def _look_alike(one: fx.Node, other: fx.Node) -> bool:
    """Same sizes and strides for all values of the program's symbols, same type and device."""
    first, second = one.meta["val"], other.meta.get("val")
    if not isinstance(second, torch.Tensor) or first.dim() != second.dim():
        return False
    if (first.dtype, first.device) != (second.dtype, second.device):
        return False
    sizes = zip((*first.shape, *first.stride()), (*second.shape, *second.stride()))
    return all(sympy.expand(expression(a) - expression(b)) == 0 for a, b in sizes)


# Copies that a caller can tell from what they were made of


def _origin(value: fx.Node) -> fx.Node:
    """What a value is a view of."""
    while operator_name(value) in VIEWS and (before := _first(value)) is not None:
        value = before
    return value


def _is_kept(value: fx.Node) -> bool:
    """Whether somebody outside the graph has the tensor: an input, or one that is stored."""
    return value.op == "placeholder"


def _escapes(facts: Facts, value: fx.Node) -> bool:
    """Whether the value, or a view of it, is returned."""
    return facts.is_output(value) or any(
        _escapes(facts, user) for user in value.users if operator_name(user) in VIEWS
    )


# Rules by operator; that sizes and strides stay is asked of all


def _always(facts: Facts, node: fx.Node) -> bool:
    return True


def _of_one(facts: Facts, node: fx.Node) -> bool:
    return len(cast(Any, node.args[0])) == 1


def _dropout(facts: Facts, node: fx.Node) -> bool:
    return not _argument(node, 1, "p") or not _argument(node, 2, "train")


def _in_place_of_axes(facts: Facts, node: fx.Node) -> bool:
    """Axes may change places only with themselves: two of one size look alike."""
    data = _first(node)
    rank = 0 if data is None else data.meta["val"].dim()
    if operator_name(node) == "permute":
        order = [axis % rank for axis in cast(Any, _argument(node, 1, "dims"))]
        return order == sorted(order)
    axes = [_argument(node, place, name) for place, name in ((1, "dim0"), (2, "dim1"))]
    return rank > 0 and cast(int, axes[0]) % rank == cast(int, axes[1]) % rank


def _pad(facts: Facts, node: fx.Node) -> bool:
    return all(width == 0 for width in cast(Any, _argument(node, 1, "pad")))


def _argument(node: fx.Node, index: int, name: str) -> Any:
    return node.args[index] if index < len(node.args) else node.kwargs.get(name)


VIEWS = frozenset(
    {
        "alias",
        "detach",
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "expand",
        "squeeze",
        "unsqueeze",
        "slice",
        "narrow",
        "permute",
        "transpose",
        "split",
        "split_with_sizes",
        "chunk",
    }
)
"""Operators whose result may lie in the memory of their operand."""

RULES: dict[str, Rule] = {
    # With the sizes and strides of their operand, these have its elements in its order.
    **dict.fromkeys(
        (
            "alias",
            "detach",
            "clone",
            "contiguous",
            "lift_fresh_copy",
            "_to_copy",
            "to",
            "type_as",
            "convert_element_type",
            "view",
            "view_copy",
            "reshape",
            "_unsafe_view",
            "flatten",
            "unflatten",
            "expand",
            "expand_copy",
            "squeeze",
            "unsqueeze",
            "slice",
            "narrow",
            "repeat",
            "tile",
            "split",
            "split_with_sizes",
            "chunk",
        ),
        _always,
    ),
    "cat": _of_one,
    "concat": _of_one,
    "dropout": _dropout,
    "permute": _in_place_of_axes,
    "transpose": _in_place_of_axes,
    "constant_pad_nd": _pad,
}

NEUTRAL: dict[str, tuple[float, tuple[int, ...]]] = {
    "add": (0.0, (0, 1)),
    "sub": (0.0, (1,)),
    "mul": (1.0, (0, 1)),
    "div": (1.0, (1,)),
    "pow": (1.0, (1,)),
}
"""The number that changes nothing, and the operands that may be it."""


def _other_of_neutral(facts: Facts, node: fx.Node, name: str) -> fx.Node | None:
    number, places = NEUTRAL[name]
    if len(node.args) != 2 or node.kwargs:
        return None
    for place in places:
        neutral, data = node.args[place], node.args[1 - place]
        if isinstance(data, fx.Node) and is_tensor(data) and _is_number(facts, neutral, number):
            return data
    return None


def _is_number(facts: Facts, argument: Any, number: float) -> bool:
    if isinstance(argument, fx.Node):
        return is_tensor(argument) and facts.scalar(argument) == number
    return not isinstance(argument, bool) and argument == number
