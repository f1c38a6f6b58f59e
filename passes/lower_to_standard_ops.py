"""Replace the fused operator by its function body, for runtimes that inline no local functions.

The result has standard operators only and no custom domain; it computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.graphs.protocol import Graph
from mla_opt.operator import contract
from mla_opt.pipeline import Pass, PassResult


@dataclass(frozen=True)
class LowerToStandardOps(Pass):
    """Inline every ``LatentAttention``."""

    name: ClassVar[str] = "lower_to_standard_ops"

    def run(self, graph: Graph) -> PassResult:
        """Inline, and forget the custom domain."""
        inlined = graph.inline(contract.DOMAIN)
        return PassResult(len(graph.sites), len(graph.sites), notes=(f"{inlined} bodies inlined",))
