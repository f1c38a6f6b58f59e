"""Whether two values of a PyTorch graph are the same in every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from mla_opt.graphs.torch.lifted_program import expression, is_size


def alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two values are one, count the same, or are computed alike of the same."""
    pending, seen = [(one, other)], set()
    while pending:
        pair = pending.pop()
        if pair[0] is pair[1] or pair in seen or _count_alike(*pair):
            continue
        seen.add(pair)
        if not _computed_alike(*pair):
            return False
        pending.extend(zip(pair[0].all_input_nodes, pair[1].all_input_nodes))
    return True


def _count_alike(one: fx.Node, other: fx.Node) -> bool:
    if not is_size(one) or not is_size(other):
        return False
    return bool(expression(one.meta["val"]) == expression(other.meta["val"]))


def _computed_alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether two nodes do the same with what they read, whatever that is."""
    if one.op != "call_function" or one.target is not other.target or is_random(one):
        return False
    return bool(_form(one) == _form(other))


def _form(node: fx.Node) -> Any:
    """The arguments, with the number of each value that the node reads in its place."""
    places = {value: f"value {place}" for place, value in enumerate(node.all_input_nodes)}
    return fx.node.map_arg((node.args, node.kwargs), places.__getitem__)


def is_random(node: fx.Node) -> bool:
    """Whether a node makes something else in every run, or runs a graph of its own."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return isinstance(target, torch._ops.HigherOrderOperator)
    seeded = torch.Tag.nondeterministic_seeded in target.tags
    name = str(target._schema.name).rpartition("::")[2]
    return seeded or name in ("empty", "new_empty", "empty_like")
