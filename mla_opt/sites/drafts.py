"""Rewritings that may be taken back: an attention in a form that is easier to read."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.handles import Node, Value
from mla_opt.sites.cache import Run


@dataclass(frozen=True, slots=True)
class Draft:
    """A rewriting that stays only if the attention that it is for is one of the graph's sites.

    ``replaced`` are pairs of a value and what is in its place. ``first`` is the product of query
    and keys, by which the attention is known. ``run`` is what is known of where its rows go.
    """

    replaced: tuple[tuple[Value, Value], ...]
    first: Node
    run: Run | None = None
