"""Widths of what feeds a latent attention: the query latent and the hidden state, for reports.

Both are found by walking back to the nearest linear layer, through norms and rotary embedding; a
graph that hides them costs nothing but a blank in a table.
"""

from __future__ import annotations

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.sites import LatentAttentionSite

_STEPS = 200


def query_source_width(graph: Graph, query: Value) -> int | None:
    """Width of the row that the query is projected from: Q, or E without query LoRA."""
    return _linear_width(graph, query)


def hidden_size(graph: Graph, site: LatentAttentionSite) -> int | None:
    """Width of the row that the latent is projected from."""
    return _linear_width(graph, site.latent)


def _linear_width(graph: Graph, value: Value) -> int | None:
    linear = nearest_linear(graph, value)
    if linear is None:
        return None
    operation = graph.operation(linear)
    assert isinstance(operation, op.Linear)
    shape = graph.example_shape(operation.data)
    return shape[-1] if shape else None


def nearest_linear(graph: Graph, value: Value) -> Node | None:
    """The linear layer nearest upstream, breadth first."""
    pending: list[Value] = [value]
    seen: set[Value] = set()
    while pending and len(seen) < _STEPS:
        current = pending.pop(0)
        if current in seen:
            continue
        seen.add(current)
        node = graph.producer(current)
        if node is None:
            continue
        if isinstance(graph.operation(node), op.Linear):
            return node
        pending.extend(each for each in graph.operands(node) if not graph.is_constant(each))
    return None
