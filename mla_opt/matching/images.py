"""What the heads of a latent attention make of its rows: rows of one matrix, each times a factor.

Where labels were sent through the layout behind one linear layer, the matrix is the layer's own;
where basis rows were sent through the whole region, it is what came out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mla_opt.handles import Array, Float64
from mla_opt.matching.labels import Trace

NOTHING = -1
"""The source of a dim that depends on no latent row."""


@dataclass(frozen=True, slots=True)
class Picks:
    """Which row of a matrix ``[W, C]`` each dim of each head is, and times what: ``[H, X]`` both.

    `NOTHING` in ``source`` is a row of zeros.
    """

    source: npt.NDArray[np.int64]
    factor: Float64

    @classmethod
    def traced(cls, trace: Trace, width: int) -> Picks:
        """What a trace says of the first ``width`` of its labels."""
        return cls(
            np.where(trace.moved & (trace.source < width), trace.source, NOTHING), trace.factor
        )

    @classmethod
    def all_from(cls, start: int, heads: int, dims: int) -> Picks:
        """The rows from ``start`` on, head by head."""
        source = start + np.arange(heads * dims).reshape(heads, dims)
        return cls(source, np.ones(source.shape))

    @property
    def dims(self) -> int:
        """X."""
        return int(self.source.shape[1])

    def at(self, dims: list[int]) -> Picks:
        """Those of some dims."""
        return Picks(self.source[:, dims], self.factor[:, dims])

    def over(self, factor: float) -> Picks:
        """The same divided by a factor."""
        return Picks(self.source, self.factor / factor)

    def before(self, other: Picks) -> Picks:
        """Those of each head in front of the other ones of that head."""
        return Picks(
            np.concatenate([self.source, other.source], axis=1),
            np.concatenate([self.factor, other.factor], axis=1),
        )

    def of(self, matrix: Array) -> Array:
        """The rows: ``[H, X, C]``; a view where they follow each other in the matrix as they are.

        The view is worth it: matrices of 32 MB a layer are usual.
        """
        picked = self.source != NOTHING
        scaled = np.any(self.factor[picked] != 1.0)
        if not scaled and self._follow_each_other():
            start = int(self.source.flat[0])
            rows: Array = matrix[start : start + self.source.size]
            return rows.reshape(*self.source.shape, matrix.shape[1])
        made: Array = matrix[np.where(picked, self.source, 0)]
        made[~picked] = 0
        if not scaled:
            return made
        return (made.astype(np.float64) * self.factor[..., None]).astype(matrix.dtype)

    def any_in(self, matrix: Array) -> bool:
        """Whether one of the rows holds a number."""
        return bool(np.any(matrix[self.source[self.source != NOTHING]]))

    def _follow_each_other(self) -> bool:
        rows = self.source.reshape(-1)
        return bool(rows.size and rows[0] != NOTHING and np.all(np.diff(rows) == 1))


@dataclass(frozen=True, slots=True)
class Images:
    """What every head makes of each basis row, and of a row of zeros.

    Attributes:
        matrix: ``[W, C]``, of which the heads make keys and values of ``c_kv``.
        keys: which of its rows the dims of keys are, ``[H, D]``.
        values: which of its rows the dims of values are, ``[H, V]``.
        rope_keys: what keys are of ``k_pe``, ``[H, D, R]``.
        rope_values: what values are of it, ``[H, V, R]``.
        key_offset: keys of a row of zeros, ``[H, D]``.
        value_offset: values of a row of zeros, ``[H, V]``.
    """

    matrix: Array
    keys: Picks
    values: Picks
    rope_keys: Array
    rope_values: Array
    key_offset: Array
    value_offset: Array
