"""Sizes of the caches that models take and return, ``[B, heads, tokens, width]``."""

from __future__ import annotations

from collections.abc import Iterable

from mla_opt.report.report import PortSpec

Rows = tuple[int, int]
"""Heads, and the width of each."""


def rows(port: PortSpec) -> Rows | None:
    """The heads and the width of a cache; ``None`` where the file does not say them."""
    if port.shape is None or len(port.shape) != 4:
        return None
    heads, width = port.shape[1], port.shape[3]
    return (heads, width) if isinstance(heads, int) and isinstance(width, int) else None


def stated(ports: Iterable[PortSpec]) -> frozenset[Rows]:
    """The sizes that some caches have, as far as they are known."""
    return frozenset(found for found in map(rows, ports) if found is not None)
