"""Rows, keys and scores that something besides the attention reads.

A buffer has more rows than there are keys: who reads one number for every key would see those too.
"""

from __future__ import annotations

from mla_opt.errors import CACHE_NOT_RECOGNIZED, Refusal
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.sites import LatentAttentionSite

_GUARDS = 8
"""Most operators one behind the other that stand between two values of an attention."""


def exposed_sites(graph: Graph) -> tuple[Refusal, ...]:
    """Sites whose keys or scores something else reads: a buffer has rows that are none of them."""
    inner = {v for site in graph.sites for v in (*_of_tokens(site), site.core.output)}
    joined = {
        value
        for site in graph.sites
        for part in (*(site.expanded or ()), *site.held)
        for value in (part.joined, part.output)
    }
    inner |= joined
    refusals = []
    for site in graph.sites:
        for value in _of_tokens(site):
            others = [
                graph.label(node)
                for node in graph.consumers(value)
                if not _stays_inside(graph, node, inner)
            ]
            if others or (graph.is_output(value) and value not in joined):
                refusals.append(_exposed(site, value, others))
                break
    return tuple(refusals)


def _of_tokens(site: LatentAttentionSite) -> tuple[Value, ...]:
    """What has numbers for every key: the cached rows, and what the attention makes of them."""
    if not site.held:
        return site.inner
    rows = (latent.value for latent in site.latents)
    rope = () if site.rope is None else (site.rope,)
    return (*site.inner, *(part.joined for part in site.held), *rows, *rope)


def _stays_inside(graph: Graph, node: Node, inner: set[Value], depth: int = _GUARDS) -> bool:
    """Whether what a node makes is for the attention alone, as scales and casts around it are."""
    if graph.is_shape_reader(node):
        return True
    return depth > 0 and all(
        value in inner
        or (
            not graph.is_output(value)
            and all(_stays_inside(graph, n, inner, depth - 1) for n in graph.consumers(value))
        )
        for value in graph.results(node)
    )


def _exposed(site: LatentAttentionSite, value: Value, others: list[str]) -> Refusal:
    by = f"read by {', '.join(others[:2])}" if others else "returned"
    return Refusal(
        site.name,
        CACHE_NOT_RECOGNIZED,
        f"{value.name} has a place for every key and is {by}, which a buffer with more rows than"
        " keys would change",
        tuple(others[:2]),
        "keep the cache as it is (cache 'keep'), or export the model without that output",
    )
