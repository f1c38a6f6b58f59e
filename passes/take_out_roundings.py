"""Let everything be read as it is before quantization rounds it, until what is rewritten is known.

Quantizers round activations: in front of linear layers, behind them, and inside the attention. No
image of a rounded row is linear in the row. So the graph is matched as the one in floating point
that it stands for::

    Before:   c_kv --Q--> --DQ--> MatMul(W_UK) --Q--> --DQ--> scores
    After:    c_kv -------------> MatMul(W_UK) -------------> scores

    Before:   c_kv --DynamicQuantizeLinear--> MatMulInteger --> Cast --> Mul
    After:    c_kv -------------------------> MatMul(DequantizeLinear(weight))

Weights stay what they are stored as. `put_back_roundings` undoes it for all that is still there
when everything is rewritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.graphs.protocol import Graph
from mla_opt.pipeline import Pass, PassResult


@dataclass(frozen=True)
class TakeOutRoundings(Pass):
    """Take the rounding of activations out of the whole graph."""

    name: ClassVar[str] = "take_out_roundings"

    def run(self, graph: Graph) -> PassResult:
        """Fill ``graph.roundings``."""
        count = len(graph.take_out_roundings())
        return PassResult(matched=count, rewritten=count)
