"""Buffers that a causal attention puts its own rows into, as caches that grow.

Before:   buffer, start [B] --> put new rows from start on --> mask rows behind a query's own
After:    past, new --> one behind the other --> causal

How many rows are past is what the attention said itself: the buffer that becomes of it begins its
new rows at ``start``, and sees none behind them.
"""

from __future__ import annotations

from dataclasses import replace

from mla_opt.sites import LatentAttentionSite
from mla_opt.sites.cache import Run


def run_of(site: LatentAttentionSite) -> Run | None:
    """Where the new rows begin, if each query sees those up to its own and no other mask is."""
    parts = site.expanded or site.held
    runs = {None if part.positions is None else part.positions.known for part in parts}
    run = runs.pop() if len(runs) == 1 else None
    masks = [(term.kind, term.value, term.fill) for term in site.core.bias]
    return run if run and masks == [("blocked", run.behind, float("-inf"))] else None


def let_it_grow(site: LatentAttentionSite) -> None:
    """Tell a buffer that rows are put into as rows of the past, and new ones behind them."""
    site.held = tuple(replace(tensor, positions=None) for tensor in site.held)
    site.core = replace(site.core, bias=(), causal=True)
