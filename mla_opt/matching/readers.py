"""Who reads a value for its content."""

from __future__ import annotations

from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node


def is_idle(graph: Graph, node: Node) -> bool:
    """Whether a node reads a value for its shape only, or makes what nobody reads."""
    return graph.is_shape_reader(node) or not any(
        graph.consumers(value) or graph.is_output(value) for value in graph.results(node)
    )
