"""Nodes of an FX graph in an order in which each comes behind what it reads, and none too many."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx


def in_order(graph: fx.Graph) -> None:
    """Sort in place: placeholders first, as they are, and the others as near as can be to it.

    Rewriting leaves readers in front of what they read now.
    """
    returned = graph.output_node()
    done: dict[fx.Node, None] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder":
            done[node] = None
    for node in list(graph.nodes):
        _visit(node, done)
    for node in done:
        if node is not returned:
            returned.prepend(node)


def _visit(node: fx.Node, done: dict[fx.Node, None]) -> None:
    """Put a node behind everything that it needs."""
    pending = [node]
    while pending:
        current = pending[-1]
        missing = [each for each in current.all_input_nodes if each not in done]
        if missing:
            pending.extend(reversed(missing))
            continue
        pending.pop()
        done.setdefault(current, None)


def drop_dead(graph: fx.Graph, keep: Collection[fx.Node] = ()) -> None:
    """Erase what nothing reads and nothing notices, attentions that could drop out included."""
    graph.eliminate_dead_code(lambda node: node in keep or _is_noticed(node))


def _is_noticed(node: fx.Node) -> bool:
    """Whether the node does something besides making a value; drawing random numbers does not."""
    target = node.target
    draws = isinstance(target, torch._ops.OpOverload) and (
        torch.Tag.nondeterministic_seeded in target.tags and not target._schema.is_mutable
    )
    return not draws and node.is_impure()
