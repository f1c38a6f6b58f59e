"""Let the operator append to the cache: past rows and new rows go in, the longer cache comes out.

Before:   past --+
                 +-- concat --> present;   present --> LatentAttention
          new  --+
After:    past, new --> LatentAttention --> present

Sites that read one cache share it: the first appends, the others read what it returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mla_opt.emission.absorbed import emit_absorbed
from mla_opt.emission.rows import Rows
from mla_opt.errors import PassError
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import CacheSlots, LatentAttentionSite


@dataclass(frozen=True)
class FuseCacheAppend(Pass):
    """Hand the latent cache of every absorbed site to its operator."""

    name: ClassVar[str] = "fuse_cache_append"

    def requires(self, graph: Graph) -> None:
        """Every site is rebuilt already."""
        if any(site.operands is None for site in graph.sites):
            raise PassError("a site is not rebuilt yet; run absorb_weights first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the sites in graph order."""
        cached = [site for site in graph.sites if site.can_append]
        owned: dict[Value, CacheSlots] = {}
        for site in cached:
            _share(site, owned)
        for site in cached:
            append_in_operator(graph, site)
        return PassResult(matched=len(graph.sites), rewritten=len(cached))


def _share(site: LatentAttentionSite, owned: dict[Value, CacheSlots]) -> None:
    """Give sites that read the same joined rows the same cache; the first of them appends."""
    assert site.cache is not None
    rows = site.cache.joined[0]
    site.appends = rows not in owned
    site.cache = owned.setdefault(rows, site.cache)


def rows_of(site: LatentAttentionSite) -> Rows:
    """Where a fused site finds its rows: it appends the new ones, or another has done so."""
    cache = site.cache
    assert cache is not None
    narrow, half = cache.kept_as is not None, None
    if cache.layout == "even":
        assert site.weights is not None
        half = (site.weights.w_uk.shape[2] + len(site.weights.rope_dims)) // 2
    if site.appends:
        return Rows(cache.new, cache.past, cache.past_len, narrow, half)
    return Rows((), cache.joined, cache.written, narrow, half)


def append_in_operator(graph: Graph, site: LatentAttentionSite) -> None:
    """Emit a site anew, with an operator that reads its cache and returns the longer one."""
    assert site.operands is not None
    builder = graph.builder(anchor(graph, site), f"{site.name}/mla")
    emitted = emit_absorbed(builder, site, site.operands, rows_of(site))
    site.fused = True
    adopt(graph, site, emitted.values())


def anchor(graph: Graph, site: LatentAttentionSite) -> Node:
    """Where to emit a rewritten site anew: in front of what it is made of now."""
    node = None if site.output is None else graph.producer(site.output)
    if node is None:
        raise PassError(f"{site.name} is not rebuilt yet; run absorb_weights first")
    return node


def adopt(graph: Graph, site: LatentAttentionSite, values: tuple[Value, ...]) -> None:
    """Let the graph read a new output and new caches of a site in place of the old ones."""
    assert site.output is not None
    output, *caches = values
    graph.replace(site.output, output)
    site.output = output
    if caches and site.cache is not None:
        for old, new in zip(site.cache.joined, caches):
            graph.replace(old, new)
        site.cache.joined = tuple(caches)
