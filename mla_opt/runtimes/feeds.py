"""What a call is fed besides its states: ids, mask, positions, and how long the past is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.graphs.interface.feeds import (
    Bools,
    mask_feed,
    numpy_dtype,
    position_feed,
    start_feed,
)
from mla_opt.graphs.interface.interface import AxisRole, ModelInterface, Port

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


class TokenFeeds:
    """Makes the feeds of one model.

    ``tokens`` is its input for ids, ``past_len`` that for the rows of buffers, if it has one.
    """

    def __init__(self, interface: ModelInterface, tokens: Port, past_len: str | None) -> None:
        self._tokens, self._past_len = tokens, past_len
        self._mask = interface.attention_mask
        self._positions, self._starts = interface.positions, interface.starts
        self._ids_dtype = numpy_dtype(tokens)

    def __call__(self, ids: Ints, valid: Bools, before: Ints) -> dict[str, Array]:
        """Return the feeds for new ``ids`` ``[B, S]``.

        Args:
            ids: the new tokens.
            valid: ``[B, P + S]``, false for padding.
            before: ``[B]``, valid tokens of each row before this call.
        """
        query_len, total = ids.shape[1], valid.shape[1]
        start = total - query_len
        feeds = self._ids_and_mask(ids, valid)
        for port in self._positions:
            feeds[port.name] = _position(port, valid, before, start)
        for port in self._starts:
            feeds[port.name] = start_feed(port, _shape(port, ids.shape[0], query_len, total), start)
        if self._past_len is not None:
            feeds[self._past_len] = np.full(ids.shape[0], start, np.int32)
        return feeds

    def step(self, ids: Ints, lengths: Ints) -> dict[str, Array]:
        """Return the feeds for one new token ``[B, 1]`` of each sequence, at a row of its own.

        Only for a model whose buffers have rows counted for each sequence, and whose positions are
        each sequence's own: nothing is padded, and no sequence is as long as another.

        Args:
            ids: the new tokens.
            lengths: ``[B]``, the rows that each sequence has before this call.
        """
        total = int(lengths.max()) + 1
        feeds = self._ids_and_mask(ids, np.arange(total)[None] <= lengths[:, None])
        for port in self._positions:
            shape = _shape(port, ids.shape[0], 1, total)
            feeds[port.name] = position_feed(port, shape, lengths[:, None], 0)
        if self._past_len is not None:
            feeds[self._past_len] = lengths.astype(np.int32)
        return feeds

    def _ids_and_mask(self, ids: Ints, valid: Bools) -> dict[str, Array]:
        feeds: dict[str, Array] = {self._tokens.name: self._ids(ids)}
        if self._mask is not None:
            (batch, query_len), total = ids.shape, valid.shape[1]
            shape = _shape(self._mask, batch, query_len, total)
            feeds[self._mask.name] = mask_feed(self._mask, shape, valid, total - query_len)
        return feeds

    def _ids(self, ids: Ints) -> Array:
        flat = ids.reshape(-1) if self._tokens.rank == 1 else ids
        return np.ascontiguousarray(flat, self._ids_dtype)


def _position(port: Port, valid: Bools, before: Ints, start: int) -> Array:
    """Positions of the new tokens; padding counts as the token before it."""
    batch, total = valid.shape
    shape = _shape(port, batch, total - start, total)
    counted = before[:, None] + np.cumsum(valid[:, start:], axis=1, dtype=np.int64) - 1
    if port.axis_of("batch") is None:
        return position_feed(port, shape, np.broadcast_to(np.int64(0), (1, total)), start)
    return position_feed(port, shape, np.maximum(counted, 0), 0)


def _shape(port: Port, batch: int, query_len: int, total: int) -> tuple[int, ...]:
    """Shape of a mask or of positions; a dimension of no known role is as long as the file says."""
    counts: dict[AxisRole, int] = {
        "batch": batch,
        "query_len": query_len,
        "total_len": total,
        "broadcast": 1,
    }
    return tuple(
        counts[axis.role]
        if axis.role in counts
        else (axis.size if isinstance(axis.size, int) else 1)
        for axis in port.axes or ()
    )
