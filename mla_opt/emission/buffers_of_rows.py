"""Buffers of keys or values that each sequence's new rows are put into, in standard operators.

last [B] --> places of the new rows [B, S] --> buffer [B, J, M, D] with the rows in them
"""

from __future__ import annotations

import numpy as np

from mla_opt.emission.cached import zeros
from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value


class Buffers:
    """The caches of one attention: how many rows they get, and where new ones go.

    Attributes:
        start: of the new rows ``[B]``, of the type of ``past.last``.
        places: of the new rows ``[B, S]``: up to the last, or from the front if there are too few.
        rows: how many there are in all, int64 ``[1]``.
        room: rows of zeros ``[B, J, rows - P, D]`` behind those of the past.
    """

    def __init__(self, builder: Builder, past: op.OwnCache, query: Value, heads: int) -> None:
        """``query`` is ``[B, H, S, D]``; ``heads`` is J."""
        assert past.last is not None and past.total is not None
        self._builder = builder
        self._zero, self._one = (
            builder.constant(np.asarray([number]), f"count_{number}") for number in (0, 1)
        )
        count = builder.dimension(query, 2)
        self._start = self._first_place(past.last, count)
        self.start = builder.cast_like(self._start, past.last, "start_of_rows")
        self.places = self._places(count)
        before = builder.dimension(past.key, 2)
        total = builder.reshape(self._wide(past.total), builder.integers(1), "total")
        missing = self._not_negative(builder.subtract(total, before, "rows_missing"))
        self.rows = builder.add(before, missing, "rows_in_all")
        one = builder.integers(1)
        column = zeros(builder, past.key, (one, one, missing, one), "column_of_zeros")
        sizes = (builder.dimension(query, 0), builder.integers(heads), one)
        wide = builder.concat((*sizes, builder.dimension(query, 3)), 0, "room_shape")
        self.room = builder.expand(column, wide, "room")

    def _wide(self, count: Value) -> Value:
        return self._builder.cast_like(count, self._one, "wide")

    def _not_negative(self, count: Value) -> Value:
        builder = self._builder
        positive = builder.greater(count, self._zero, "is_positive")
        return builder.where(positive, count, self._zero, "or_nothing")

    def _first_place(self, last: Value, count: Value) -> Value:
        builder = self._builder
        behind = builder.add(self._wide(last), self._one, "rows_so_far")
        return self._not_negative(builder.subtract(behind, count, "start"))

    def _places(self, count: Value) -> Value:
        builder = self._builder
        by_sequence = builder.unsqueeze(self._start, 1, "start_of_each")
        return builder.add(by_sequence, builder.positions(count, "new_places"), "places")

    def joined(self, past: Value, new: Value, name: str) -> Value:
        """``past [B, J, P, D]`` with room behind it, and ``new [B, J, S, D]`` in its places."""
        builder = self._builder
        buffer = builder.concat((past, self.room), 2, f"{name}_with_room")
        turned = [builder.transpose(each, (0, 2, 1, 3), f"{name}_turned") for each in (buffer, new)]
        put = builder.put_each(turned[0], self._pairs(), turned[1], f"{name}_put")
        return builder.transpose(put, (0, 2, 1, 3), name)

    def _pairs(self) -> Value:
        """Sequence and place of every new row ``[B, S, 2]``."""
        builder = self._builder
        batch, count = (builder.dimension(self.places, axis) for axis in (0, 1))
        column = builder.unsqueeze(builder.positions(batch, "sequences"), 1, "column_of_sequences")
        shape = builder.concat((batch, count), 0, "shape_of_places")
        sequences = builder.expand(column, shape, "sequence_of_each")
        halves = (builder.unsqueeze(each, 2, "coordinate") for each in (sequences, self.places))
        return builder.concat(tuple(halves), 2, "coordinates")

    def behind(self) -> Value:
        """True for rows behind a query's own place: ``[B, 1, S, M]``."""
        builder = self._builder
        rows = builder.positions(self.rows, "rows_of_buffer")
        column = builder.unsqueeze(builder.unsqueeze(self.places, 2, "own_place"), 1, "by_head")
        return builder.greater(rows, column, "behind")
