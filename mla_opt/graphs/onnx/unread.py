"""Nodes and stored tensors that nothing reads: what they are, and how they go."""

from __future__ import annotations

import onnx_ir as ir


def remove_dead_nodes(graph: ir.Graph) -> None:
    """Drop nodes without readers, last ones first; nodes with branches are judged as a whole."""
    for node in reversed(graph):
        if not is_needed(node):
            release_captured(node)
            graph.remove(node, safe=True)


def is_needed(node: ir.Node) -> bool:
    """Whether anything reads what a node makes."""
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


def release_captured(node: ir.Node) -> None:
    """Let the branches of a node that goes read nothing any more of the graph around them."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                for place in range(len(inner.inputs)):
                    inner.replace_input_with(place, None)


def remove_unread_tensors(graph: ir.Graph) -> None:
    """Drop stored tensors without readers, but for those that are also inputs."""
    unread = [
        name
        for name, value in graph.initializers.items()
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input()
    ]
    for name in unread:
        graph.initializers.pop(name)
