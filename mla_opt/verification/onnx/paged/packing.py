"""One call on packed tokens: whose they are, and where in the blocks their rows lie.

Blocks are handed out in a random order, some to nobody, and hold numbers that nothing may read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.graphs.interface.feeds import Bools
from mla_opt.operator.paged_attention import LEAST_BLOCK

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

SPARE_BLOCKS = 3
UNREAD = 7.0
"""What blocks hold where no row was written."""


@dataclass(frozen=True, slots=True)
class PackedCall:
    """Where everything of one call is.

    Attributes:
        valid: ``[B, P + S]``, false where a row is padding.
        new: S.
        table: blocks of each sequence ``[B, most]``, -1 behind the last.
        blocks: how many there are.
    """

    valid: Bools
    new: int
    table: Ints
    blocks: int

    @classmethod
    def of(cls, valid: Bools, new: int) -> PackedCall:
        """Hand out blocks for the valid tokens of every sequence."""
        needed = -(-valid.sum(axis=1) // LEAST_BLOCK)
        count = int(needed.sum()) + SPARE_BLOCKS
        order = np.random.default_rng([*valid.shape, new]).permutation(count)
        table = np.full((len(valid), max(int(needed.max()), 1)), -1, np.int64)
        for row, start, size in zip(table, np.cumsum(needed) - needed, needed):
            row[:size] = order[start : start + size]
        return cls(valid, new, table, count)

    @property
    def _of_call(self) -> Bools:
        """Valid tokens among the new ones ``[B, S]``."""
        return self.valid[:, self.valid.shape[1] - self.new :]

    def feeds(self) -> dict[str, Array]:
        """The inputs that tell of the call."""
        lengths = self._of_call.sum(axis=1)
        past = self.valid.sum(axis=1) - lengths
        ends = np.concatenate([[0], np.cumsum(lengths)])
        return {
            "cumulative_sequence_length": ends.astype(np.int32),
            "past_seqlens": past.astype(np.int32),
            "block_table": self.table.astype(np.int32),
            "slot_mapping": self.slots()[:, -self.new :][self._of_call].astype(np.int32),
        }

    def slots(self) -> Ints:
        """Where the row of each token lies ``[B, P + S]``; -1 for padding."""
        places = np.cumsum(self.valid, axis=1) - 1
        blocks = np.take_along_axis(self.table, np.maximum(places, 0) // LEAST_BLOCK, axis=1)
        return np.where(self.valid, blocks * LEAST_BLOCK + places % LEAST_BLOCK, -1)

    def packed(self, padded: Array) -> Array:
        """The valid tokens of ``[B, S, ...]``, one sequence behind the other: ``[T, ...]``."""
        return padded[self._of_call]

    def padded(self, packed: Array) -> Array:
        """``[T, ...]`` as ``[B, S, ...]``, with zeros for padding."""
        whole = np.zeros((*self._of_call.shape, *packed.shape[1:]), packed.dtype)
        whole[self._of_call] = packed
        return whole

    def blocks_of(self, past: Array, dtype: np.dtype[Any]) -> Array:
        """Rows of the past ``[B, 1, P, W]`` in blocks."""
        width = past.shape[-1]
        blocks = np.full((self.blocks * LEAST_BLOCK, width), UNREAD).astype(dtype)
        slots = self.slots()[:, : past.shape[2]]
        blocks[slots[slots >= 0]] = past[:, 0][slots >= 0].astype(dtype)
        return blocks.reshape(self.blocks, LEAST_BLOCK, 1, width)

    def rows_of(self, blocks: Array) -> Array:
        """Past and new rows ``[B, 1, P + S, W]`` that lie in blocks; zeros for padding."""
        slots, flat = self.slots(), blocks.reshape(-1, blocks.shape[-1])
        rows = flat[np.maximum(slots, 0)]
        rows[slots < 0] = 0
        return rows[:, None]
