"""Integer tensors whose content is known as expressions.

Entries    a few numbers, each an expression: a shape, a reshape target, bounds of a slice
Ramp       start + sum of step * index over some axes: positions, indices; sizes may be symbols
Columns    ramps side by side on the last axis: the coordinates that a scatter writes to
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import sympy

from mla_opt.graphs.sizes import Expression, plain

MOST_ENTRIES = 4096


@dataclass(frozen=True, slots=True)
class Entries:
    """Every element by itself; ``array`` holds numbers, expressions or truths."""

    array: npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Ramp:
    """``start + sum(step * index of axis)``; ``steps`` has one step an axis."""

    start: Expression
    steps: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """One ramp for each place on the last axis; the ramps have the other axes."""

    ramps: tuple[Ramp, ...]


Integers = Entries | Ramp | Columns


def from_array(array: npt.NDArray[Any]) -> Entries:
    """Numbers as they are stored."""
    entries = np.empty(array.shape, dtype=object)
    entries[...] = array.tolist() if array.ndim else array.item()
    return Entries(entries)


def entries(values: list[Expression]) -> Entries:
    """A vector."""
    array = np.empty(len(values), dtype=object)
    array[:] = [plain(value) for value in values]
    return Entries(array)


def vector(content: Integers | None) -> list[Expression] | None:
    """The elements of a vector, or of a single number, if they are known one by one."""
    if not isinstance(content, Entries) or content.array.ndim > 1:
        return None
    return [plain(value) for value in content.array.reshape(-1)]


def number(content: Integers | None) -> Expression | None:
    """The element of a tensor of one."""
    if isinstance(content, Entries) and content.array.size == 1:
        return plain(content.array.reshape(-1)[0])
    if isinstance(content, Ramp) and not content.steps:
        return plain(content.start)
    return None


def as_ramp(content: Integers | None, rank: int) -> Ramp | None:
    """The content as one ramp over ``rank`` axes, where it is one."""
    if isinstance(content, Ramp):
        return content if len(content.steps) == rank else None
    if not isinstance(content, Entries) or content.array.ndim != rank:
        return None
    return _ramp_of(content.array)


def _ramp_of(array: npt.NDArray[Any]) -> Ramp | None:
    if not array.size or not all(isinstance(each, int) for each in array.reshape(-1)):
        single = array.size == 1 and isinstance(array.reshape(-1)[0], (int, sympy.Expr))
        return Ramp(array.reshape(-1)[0], (0,) * array.ndim) if single else None
    exact = array.astype(np.int64)
    steps = []
    for axis, size in enumerate(array.shape):
        first = np.take(exact, [0], axis=axis)
        step = int((np.take(exact, [1], axis=axis) - first).reshape(-1)[0]) if size > 1 else 0
        steps.append(step)
    made = np.full(array.shape, int(exact.reshape(-1)[0]), dtype=np.int64)
    for axis, step in enumerate(steps):
        shape = [1] * array.ndim
        shape[axis] = array.shape[axis]
        made = made + step * np.arange(array.shape[axis]).reshape(shape)
    return Ramp(int(exact.reshape(-1)[0]), tuple(steps)) if np.array_equal(made, exact) else None
