"""Buffers of keys or values that each sequence's new rows are put into, in standard operators.

last [B] --> places of the new rows [B, S] --> buffer [B, J, M, D] with the rows in them
"""

from __future__ import annotations

import numpy as np

from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value


def places_before(builder: Builder, last: Value, query: Value) -> Value:
    """Where new rows go ``[B, S]``: up to ``last``, or from the front if there are too few.

    ``query`` is ``[B, H, S, D]``.
    """
    count = builder.dimension(query, 2)
    one, zero = (builder.constant(np.asarray([number]), f"place_{number}") for number in (1, 0))
    wide = builder.cast_like(last, one, "last_place")
    start = builder.subtract(builder.add(wide, one, "places_in_all"), count, "first_place")
    start = builder.where(builder.greater(start, zero, "is_behind"), start, zero, "start")
    by_sequence = builder.unsqueeze(start, 1, "start_of_each")
    return builder.add(by_sequence, builder.positions(count, "new_places"), "places")


def with_rows_put(builder: Builder, buffer: Value, rows: Value, places: Value, name: str) -> Value:
    """``buffer [B, J, M, D]`` with ``rows [B, J, S, D]`` at ``places [B, S]``."""
    turned = [builder.transpose(each, (0, 2, 1, 3), f"{name}_by_place") for each in (buffer, rows)]
    put = builder.put_each(turned[0], _pairs(builder, places), turned[1], f"{name}_put")
    return builder.transpose(put, (0, 2, 1, 3), name)


def _pairs(builder: Builder, places: Value) -> Value:
    """Sequence and place of every new row ``[B, S, 2]``."""
    batch, count = (builder.dimension(places, axis) for axis in (0, 1))
    column = builder.unsqueeze(builder.positions(batch, "sequences"), 1, "column_of_sequences")
    shape = builder.concat((batch, count), 0, "shape_of_places")
    sequences = builder.expand(column, shape, "sequence_of_each")
    halves = (builder.unsqueeze(each, 2, "coordinate") for each in (sequences, places))
    return builder.concat(tuple(halves), 2, "coordinates")


def behind(builder: Builder, places: Value, buffer: Value) -> Value:
    """True for rows of ``buffer [B, J, M, D]`` behind a query's own place: ``[B, 1, S, M]``."""
    rows = builder.positions(builder.dimension(buffer, 2), "rows_of_buffer")
    column = builder.unsqueeze(builder.unsqueeze(places, 2, "own_place"), 1, "own_place_by_head")
    return builder.greater(rows, column, "behind")
