"""Write a pass of one's own, and run it in a pipeline between the passes that come along.

    python examples/custom_pass.py [MODEL.onnx]

The pass changes nothing: it reports what each latent attention would save. It sees the graph
through the protocol of `mla_opt.graphs.protocol` only, so it works on whatever graph there is an
adapter for. A package that installs it under the entry-point group `mla_opt.passes` makes it known
by its name to `mla-opt optimize --passes`, too:

    [project.entry-points."mla_opt.passes"]
    report_savings = "my_package.passes:ReportSavings"
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar

from mla_opt import passes
from mla_opt.errors import PassError
from mla_opt.files.model_io import read_model
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.protocol import Graph
from mla_opt.models import demo_model
from mla_opt.pipeline import Pass, PassResult, Pipeline
from mla_opt.sites import LatentAttentionSite


@dataclass(frozen=True)
class ReportSavings(Pass):
    """Tell, for every latent attention, how much less there is to read at ``context`` tokens."""

    name: ClassVar[str] = "report_savings"
    context: int = 8192

    def requires(self, graph: Graph) -> None:
        """`extract_weights` has run: it is what measures the geometry."""
        if any(site.geometry is None for site in graph.sites):
            raise PassError("run extract_weights first")

    def run(self, graph: Graph) -> PassResult:
        """One note for each site; nothing is rewritten."""
        notes = tuple(self._note(graph, site) for site in graph.sites)
        return PassResult(matched=len(graph.sites), notes=notes)

    def _note(self, graph: Graph, site: LatentAttentionSite) -> str:
        geometry, size = site.geometry, graph.dtype(site.latent).itemsize
        expanded = self.context * geometry.expanded_width * size
        latent = self.context * geometry.latent_width * size
        heads = f"{geometry.num_heads} heads read {latent / 1e6:.1f} MB once"
        return (
            f"{site.name}: {heads}, not {expanded / 1e6:.1f} MB, at {self.context} tokens "
            f"({expanded / latent:.1f}x less), from node {graph.label(site.core.first)} on"
        )


def main(path: str) -> None:
    graph = OnnxGraph(read_model(path))
    built_in = [passes.load(name)() for name in ("find_latent_attention", "extract_weights")]
    pipeline = Pipeline([*built_in, ReportSavings(context=4096)])
    for record in pipeline.run(graph):
        result = record.result
        print(f"{record.name}: {result.matched} matched in {record.seconds:.2f} s")
        for line in (*result.notes, *(refusal.reason for refusal in result.refusals)):
            print(f"    {line}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(demo_model()))
