"""Keep the rows of the latent cache in 16 bits, everything else in float32.

Before:   past float32,  new float32 --> LatentAttention --> present float32
After:    past bfloat16, new float32 --> LatentAttention --> present bfloat16

The operator rounds new rows to the cache's type, and attends to the rounded rows: half the memory
and half the traffic of a decode step, for an error of the rounding. Kernels that multiply in the
narrow type gain its speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from mla_opt.errors import InputError, PassError, Refusal
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.passes.fuse_cache_append import append_in_operator
from mla_opt.pipeline import Pass, PassResult
from mla_opt.sites import CacheSlots, LatentAttentionSite

CacheType = Literal["keep", "float16", "bfloat16"]


@dataclass(frozen=True)
class NarrowCache(Pass):
    """Give every latent cache the element type ``cache_type``."""

    name: ClassVar[str] = "narrow_cache"
    cache_type: CacheType = "keep"

    def requires(self, graph: Graph) -> None:
        """Every cache is handed to the operator."""
        if any(not site.fused for site in cached(graph)):
            raise PassError("a site does not append to its cache yet; run fuse_cache_append first")

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the caches, then the sites that read them, in graph order.

        Raises:
            InputError: rows are kept in something else than float32, or something else reads them.
        """
        if self.cache_type == "keep":
            return PassResult(len(graph.sites))
        sites = cached(graph)
        caches = caches_of(sites)
        before = names_of(past for cache in caches for past in cache.past)
        for cache in caches:
            _narrow(graph, cache, self.cache_type)
        for site in sites:
            check_query(graph, site)
            append_in_operator(graph, site)
        graph.prune()
        after = names_of(rows for cache in caches for rows in cache.joined)
        check_readers(graph, before | after, sites, "16 bits; keep the type of the cache")
        others = tuple(left_alone(site) for site in graph.sites if has_another_cache(site))
        return PassResult(len(graph.sites), len(sites), others)


def cached(graph: Graph) -> list[LatentAttentionSite]:
    """The sites whose operator appends to their cache."""
    return [site for site in graph.sites if site.can_append]


def caches_of(sites: Iterable[LatentAttentionSite]) -> list[CacheSlots]:
    """Every cache of the sites once."""
    return list({id(site.cache): site.cache for site in sites if site.cache is not None}.values())


def names_of(rows: Iterable[Value]) -> dict[Value, str]:
    """Rows with the names that they have by now."""
    return {value: value.name or "" for value in rows}


def check_readers(
    graph: Graph, rows: Mapping[Value, str], sites: Iterable[LatentAttentionSite], bits: str
) -> None:
    """Nothing but the operators may read rows of fewer bits, before a call or after it.

    Raises:
        InputError: something does.
    """
    queries = [site.query_value for site in sites if site.query_value is not None]
    ours = {node for query in queries for node in graph.consumers(query)}
    for value, name in rows.items():
        for node in graph.consumers(value):
            if node not in ours and not graph.is_shape_reader(node):
                raise InputError(
                    f"cache {name!r} is read by {graph.label(node)} as well, which cannot"
                    f" read rows of {bits}"
                )


def has_another_cache(site: LatentAttentionSite) -> bool:
    """Whether a site has a cache that no operator appends to."""
    return not site.only_new_rows and not site.can_append


def left_alone(site: LatentAttentionSite) -> Refusal:
    """Say that such a cache keeps its type."""
    return Refusal(
        site.name,
        "cache_type_kept",
        "its cache is not one that the operator appends to, so its type stays as it is",
        remedy="let the cache grow with the tokens, and ask for cache 'packed' as well",
    )


def check_query(graph: Graph, site: LatentAttentionSite) -> None:
    """The operator takes float32 queries with narrow caches; also makes their type known."""
    assert site.operands is not None
    kind = graph.dtype(site.operands.query_nope).name
    if kind != "float32":
        raise PassError(f"{site.name} has {kind} queries, but float32 caches")


def check_float32(graph: Graph, past: Value, cache_type: str) -> None:
    """A cache of fewer bits stays as it is.

    Raises:
        InputError: it has fewer, or more.
    """
    kept = graph.dtype(past).name
    if kept != "float32":
        raise InputError(
            f"cache input {past.name!r} is {kept}: only float32 caches can be kept as"
            f" {cache_type} (cache type 'keep')"
        )


def _narrow(graph: Graph, cache: CacheSlots, cache_type: str) -> None:
    """Put inputs of the type in the place of the cache's."""
    for past in cache.past:
        check_float32(graph, past, cache_type)
    cache.past = tuple(
        graph.replace_input(past, past.name or "", graph.declared_shape(past), cache_type)
        for past in cache.past
    )
    cache.kept_as, cache.own = cache_type, False
