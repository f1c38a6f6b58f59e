"""Rows of the past with new ones: behind them, or in places of a buffer that a model computes."""

from __future__ import annotations

from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value
from mla_opt.sites import Positions


def with_new_rows(
    builder: Builder, past: Value, new: Value, width: int, positions: Positions | None, name: str
) -> Value:
    """``past [B, 1, P, X]`` with ``new [B, 1, S, X]`` behind it, or in places of it."""
    if positions is None:
        return builder.concat((past, new), 2, name)
    return builder.put(past, _places(builder, new, width, positions), new, name)


def _places(builder: Builder, new: Value, width: int, positions: Positions) -> Value:
    """The place of every number of the new rows, int64 ``[B, 1, S, X]``."""
    column = builder.slice(
        positions.index,
        positions.column,
        positions.column + 1,
        int(positions.by_sequence) + 1,
        "places",
    )
    by_head = builder.unsqueeze(column, int(positions.by_sequence), "places_by_head")
    if not positions.by_sequence:
        by_head = builder.unsqueeze(by_head, 0, "places_by_sequence")
    sizes = (
        builder.dimension(new, 0),
        builder.integers(1),
        builder.dimension(new, 2),
        builder.integers(width),
    )
    return builder.expand(by_head, builder.concat(sizes, 0, "size_of_rows"), "places_of_rows")
