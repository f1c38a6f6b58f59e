"""Following every element of a tensor through layout, by sending labels through it.

Layout moves elements, scales them by constants and adds constants; so each element of the result is
one element of the source times a factor plus an offset, or a constant alone. A few runs tell which:
zeros give the offset, ones the factor, and the digits of the positions the position. Digits are
small enough to be exact in half precision. One more run, of numbers in no order, tells whether that
is all: sums of elements look like another element to digits, but not to those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mla_opt.handles import Array

_BASE = 64
"""Digits of labels: products with a rounded factor still round to the right digit."""

_MANY = 256
"""Numbers in no order are less than this: what a rounded factor makes of them is off by less than
:data:`_NEAR`."""

_NEAR = 0.5


@dataclass(frozen=True, slots=True)
class Trace:
    """For every element of a result ``[..., X]``: where it comes from in a row of ``width``.

    ``result = row[source] * factor + offset``; ``source`` is -1 where the result does not depend on
    the row. ``alone`` says that this is so: where the result is a sum of elements, it is not.
    """

    source: npt.NDArray[np.int64]
    factor: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    alone: bool = True

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
    mixed = np.random.default_rng(width).integers(0, _MANY, width).astype(np.float64)
    return tuple(
        _checked(
            _trace(np.asarray(zero, np.float64), np.asarray(one, np.float64), parts), mixed, seen
        )
        for seen, zero, one, *parts in zip(run(mixed), zeros, ones, *digits)
    )


def _checked(traced: Trace, labels: Array, seen: Array) -> Trace:
    """Whether other labels go where they are said to go."""
    known = traced.moved & (traced.source < len(labels))
    steps = (np.asarray(seen, np.float64) - traced.offset) / np.where(known, traced.factor, 1.0)
    wanted = np.where(known, labels[np.where(known, traced.source, 0)], 0.0)
    alone = np.array_equal(known, traced.moved) and bool(np.all(np.abs(steps - wanted) < _NEAR))
    return replace(traced, alone=alone)


def _trace(zero: Array, one: Array, digits: list[Array]) -> Trace:
    factor = one - zero
    moved = factor != 0
    safe = np.where(moved, factor, 1.0)
    source = np.zeros(zero.shape, dtype=np.int64)
    for place, digit in enumerate(digits):
        value = np.rint((np.asarray(digit, np.float64) - zero) / safe).astype(np.int64)
        source += value * _BASE**place
    return Trace(np.where(moved, source, -1), factor, zero)
