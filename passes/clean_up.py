"""Remove what the rewriting left behind: dead nodes, unread stored tensors, unused functions.

Inputs, outputs, metadata and opset imports of the model stay, whether used or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.graphs.protocol import Graph
from mla_opt.pipeline import Pass, PassResult


@dataclass(frozen=True)
class CleanUp(Pass):
    """Put the nodes in order and drop what nothing reads."""

    name: ClassVar[str] = "clean_up"

    def run(self, graph: Graph) -> PassResult:
        """Sort, prune, settle how functions are called; without a site, nothing."""
        if not graph.sites:
            return PassResult()
        removed = graph.prune()
        graph.settle_functions()
        return PassResult(notes=(f"{removed} dead nodes removed",) if removed else ())
