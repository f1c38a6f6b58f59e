"""Quantize activations again wherever the rewriting has left those who read them so.

    x ----------> MatMul           x --Q--> --DQ--> MatMul
    x --+-------> MatMul    -->    x --+-----Q--> --DQ--> MatMul
        +--> LatentAttention           +--> LatentAttention

What the model rounded for nodes that are gone, those of the attentions that were rewritten, stays
away: what came in their place reads floating point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.graphs.protocol import Graph
from mla_opt.pipeline import Pass, PassResult


@dataclass(frozen=True)
class PutBackRoundings(Pass):
    """Undo `take_out_roundings` outside of what was rewritten."""

    name: ClassVar[str] = "put_back_roundings"

    def run(self, graph: Graph) -> PassResult:
        """Restore what is read by nodes that the model came with."""
        count = len(graph.roundings)
        if not count:
            return PassResult()
        back = graph.put_back_roundings()
        gone = f"{count - back} of {count} roundings of activations are left out"
        return PassResult(matched=count, rewritten=back, notes=(gone,))
