"""Rows of the past with new ones: behind them, or in places of a buffer that a model computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mla_opt.emission.layout import standard
from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value
from mla_opt.sites import Positions
from mla_opt.sites.layout import KEYS


@dataclass(frozen=True, slots=True)
class Together:
    """Past and new rows: those that are read, and all that is kept of them."""

    joined: Value
    kept: Value


def with_new_rows(
    builder: Builder, past: Value, new: Value, width: int, positions: Positions | None, name: str
) -> Together:
    """``past [B, 1, P, X]`` with ``new [B, 1, S, X]`` behind it, or in places of it."""
    if positions is None:
        joined = builder.concat((past, new), 2, name)
        return Together(joined, joined)
    if positions.room is not None:
        past = _with_room(builder, past, width, positions.room, name)
    sequences = builder.dimension(new, 0)
    part = builder.first(past, sequences, 0, "sequences") if positions.first else past
    written = _written(builder, part, new, positions, name)
    kept = builder.put_first(past, written, f"{name}_kept") if positions.first else written
    if positions.count is None:
        return Together(written, kept)
    count = builder.as_count(positions.count)
    return Together(builder.first(written, count, 2, f"{name}_read"), kept)


def _written(builder: Builder, buffer: Value, new: Value, positions: Positions, name: str) -> Value:
    if positions.run:
        return builder.write_rows(buffer, new, positions.index, name)
    where = standard(builder, positions.index, positions.layout, KEYS, "places")
    return builder.put(buffer, where, new, name)


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
