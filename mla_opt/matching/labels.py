"""Following every element of a tensor through layout, by sending labels through it.

Layout moves elements, scales them by constants and adds constants; so each element of the result is
one element of the source times a factor plus an offset, or a constant alone. Four runs tell which:
zeros give the offset, ones the factor, and the digits of the positions the position. Digits are
small enough to be exact in half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mla_opt.handles import Array

_BASE = 64
"""Digits of labels: products with a rounded factor still round to the right digit."""


@dataclass(frozen=True, slots=True)
class Trace:
    """For every element of a result ``[..., X]``: where it comes from in a row of ``width``.

    ``result = row[source] * factor + offset``; ``source`` is -1 where the result does not depend on
    the row.
    """

    source: npt.NDArray[np.int64]
    factor: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    @property
    def moved(self) -> npt.NDArray[np.bool_]:
        """Where the result depends on the row."""
        moved: npt.NDArray[np.bool_] = self.source >= 0
        return moved


def trace(width: int, run: Callable[[Array], tuple[Array, ...]]) -> tuple[Trace, ...]:
    """Trace every result of ``run``, which takes one row of labels ``[width]``."""
    zeros, ones = run(np.zeros(width)), run(np.ones(width))
    digits, positions = [], np.arange(width)
    while True:
        digits.append(run((positions % _BASE).astype(np.float64)))
        positions = positions // _BASE
        if not positions.any():
            break
    return tuple(
        _trace(np.asarray(zero, np.float64), np.asarray(one, np.float64), parts)
        for zero, one, *parts in zip(zeros, ones, *digits)
    )


def _trace(zero: Array, one: Array, digits: list[Array]) -> Trace:
    factor = one - zero
    moved = factor != 0
    safe = np.where(moved, factor, 1.0)
    source = np.zeros(zero.shape, dtype=np.int64)
    for place, digit in enumerate(digits):
        value = np.rint((np.asarray(digit, np.float64) - zero) / safe).astype(np.int64)
        source += value * _BASE**place
    return Trace(np.where(moved, source, -1), factor, zero)
