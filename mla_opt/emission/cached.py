"""Rows of the past with new ones: behind them, or in places of a buffer that a model computes."""

from __future__ import annotations

from collections.abc import Sequence

from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value
from mla_opt.sites import Positions


def with_new_rows(
    builder: Builder, past: Value, new: Value, width: int, positions: Positions | None, name: str
) -> Value:
    """``past [B, 1, P, X]`` with ``new [B, 1, S, X]`` behind it, or in places of it."""
    if positions is None:
        return builder.concat((past, new), 2, name)
    if positions.room is not None:
        past = _with_room(builder, past, width, positions.room, name)
    return builder.put(past, _places(builder, new, width, positions), new, name)


def _with_room(
    builder: Builder, past: Value, width: int, room: tuple[Value, int], name: str
) -> Value:
    """``past [B, 1, P, X]`` with as many rows of zeros behind it as ``room`` has on its axis."""
    ones, count = builder.integers(1), builder.dimension(*room)
    sizes = (builder.dimension(past, 0), ones, count, builder.integers(width))
    return builder.concat((past, zeros(builder, past, sizes, f"{name}_room")), 2, f"{name}_roomy")


def zeros(builder: Builder, like: Value, sizes: Sequence[Value], name: str) -> Value:
    """Zeros of a shape, of the element type of ``like``."""
    shape = builder.concat(sizes, 0, f"{name}_shape")
    return builder.expand(builder.scalar_like(0.0, like, "zero"), shape, name)


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
