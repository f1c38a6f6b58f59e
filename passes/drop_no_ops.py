"""Let nothing that does nothing lie between a value and its readers.

Exporters leave operators behind that return their operand as it is: a concatenation of one tensor,
a cast to the type that is there, a slice of all, a reshape to the same sizes, dropout in inference.
One of them between a cache and its rows, and the cache is not known for one. A slice that takes one
tensor out of those that were just joined does nothing either.

Before:   past --> Concat of one --> Concat with new rows --> Identity --> present
After:    past --> Concat with new rows --> present

What an operator does must be proved for every size, by its attributes, by stored operands, or by
the sizes that the graph declares; two sizes that are equal in an example are not. An output keeps
its name. Where it is an input of the graph, or another output, all but in name, the operator stays
for the output, and its other readers read what it reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.pipeline import Pass, PassResult


@dataclass(frozen=True)
class DropNoOps(Pass):
    """Redirect the readers of every operator that returns its operand as it is."""

    name: ClassVar[str] = "drop_no_ops"

    def run(self, graph: Graph) -> PassResult:
        """Go through the nodes in order, so that of several in a row none is left."""
        dropped = 0
        for node in graph.nodes():
            operand = graph.unchanged(node)
            if operand is not None:
                dropped += _bypass(graph, node, operand)
        return PassResult(matched=dropped, rewritten=dropped)


def _bypass(graph: Graph, node: Node, operand: Value) -> bool:
    """Let those who read what a node makes read its operand; returns whether anybody did."""
    (result, *_) = graph.results(node)
    returned = graph.is_output(result)
    if returned and _can_be_output(graph, operand):
        graph.replace(result, operand)
    elif not graph.redirect(result, operand):
        return False
    elif returned:
        return True
    graph.remove(node)
    return True


def _can_be_output(graph: Graph, value: Value) -> bool:
    """Whether a value can be returned under another name: a node makes it, and it has no other."""
    return graph.producer(value) is not None and not graph.is_output(value)
