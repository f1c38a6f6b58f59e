"""Taking drafts back, or making them final.

An attention that is written in a way of its own is written in the usual way before it is read, and
is left as it was if it turns out to be none that can be rewritten.
"""

from __future__ import annotations

from mla_opt.graphs.protocol import Graph
from mla_opt.sites.drafts import Draft


def withdraw_unused(graph: Graph) -> None:
    """Take back the drafts that no site of the graph is made of."""
    used = {site.core.first for site in graph.sites}
    unused = [draft for draft in graph.drafts if draft.first not in used]
    for draft in reversed(unused):
        _withdraw(graph, draft)
    if unused:
        graph.drafts[:] = [draft for draft in graph.drafts if draft.first in used]
        graph.refresh()


def settle(graph: Graph) -> None:
    """Make the drafts of sites final: what they stand for goes, unless something else reads it."""
    withdraw_unused(graph)
    for draft in graph.drafts:
        for old, _ in draft.replaced:
            node = graph.producer(old)
            if node is not None:
                graph.remove(node)
    graph.drafts.clear()


def _withdraw(graph: Graph, draft: Draft) -> None:
    """Let the graph be what it was before a draft."""
    for old, new in draft.replaced:
        graph.replace(new, old)
    for _, new in draft.replaced:
        node = graph.producer(new)
        if node is not None:
            graph.remove(node)
