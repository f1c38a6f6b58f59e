"""Absorb W_UK into the query and W_UV into the output: attention over latent rows.

Before:   c_kv --> W_UK, W_UV of every head --> keys, values --> attention --> output
After:    query @ W_UK --> LatentAttention(c_kv, k_pe) --> @ W_UV ----------> output

The rows come from the graph as it is; ``fuse_cache_append`` hands the cache to the operator. A site
whose form is ``none`` is not absorbed, only rebuilt without what its exporter added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.emission.absorbed import emit_absorbed
from mla_opt.emission.expanded import emit_expanded
from mla_opt.emission.layout import restored
from mla_opt.emission.operands import layouts, new_rows, operands
from mla_opt.emission.rows import Rows
from mla_opt.errors import PassError
from mla_opt.graphs.protocol import Graph
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import LatentAttentionSite
from mla_opt.sites.layout import HIDDEN, QUERY


@dataclass(frozen=True)
class AbsorbWeights(Pass):
    """Replace the core of every site by attention over its latent rows."""

    name: ClassVar[str] = "absorb_weights"

    def requires(self, graph: Graph) -> None:
        """Every site has its matrices, and none still caches expanded rows."""
        for site in graph.sites:
            if site.weights is None:
                raise PassError(f"{site.name} has no matrices; run extract_weights first")
            if site.expanded is not None:
                raise PassError(f"{site.name} caches expanded rows; run compress_cache first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the sites in graph order."""
        for site in graph.sites:
            _absorb(graph, site)
        return PassResult(matched=len(graph.sites), rewritten=len(graph.sites))


def _absorb(graph: Graph, site: LatentAttentionSite) -> None:
    builder = graph.builder(site.core.last, f"{site.name}/mla")
    site.operands = operands(graph, builder, site)
    rows = Rows(new=new_rows(builder, site))
    emit = emit_expanded if site.form == "none" else emit_absorbed
    emitted = emit(builder, site, site.operands, rows)
    folded = site.output_projection
    site.output = emitted.output
    if folded is not None:
        result = restored(builder, emitted.output, folded.layout, HIDDEN, "projected_as_it_was")
        graph.replace(folded.result, result)
        return
    made = restored(builder, emitted.output, layouts(site).output, QUERY, "output_as_it_was")
    graph.replace(site.core.output, made)
