"""`Slots`: the buffers of a number of sequences, each with as many valid rows as it needs.

A slot is one sequence's part of every buffer. Sequences are dimension 0, so neighbouring slots are
one tensor: a decode step is given the first n of them, a prompt one alone, and nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mla_opt.graphs.interface.feeds import numpy_dtype
from mla_opt.graphs.interface.interface import State
from mla_opt.ort_values import aligned_zeros, to_ort_value
from mla_opt.runtimes.onnxruntime.buffers import shape_without_rows

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class SlotView:
    """Neighbouring slots of one state, as a call takes them: past and present are one memory."""

    state: State
    part: Array

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return int(self.part.shape[0])

    def past(self, length: int) -> ort.OrtValue:
        """All rows, valid or not: the model is told how many are."""
        return to_ort_value(self.part)

    def present(self, length: int) -> ort.OrtValue:
        """The same memory."""
        return to_ort_value(self.part)

    def advance(self) -> None:
        """Nothing: the rows are where they belong."""


class Slots:
    """Room for ``count`` sequences of ``rows`` rows in every state."""

    def __init__(self, states: tuple[State, ...], count: int, rows: int) -> None:
        """Allocate zeros; pages take no memory before they are written.

        Raises:
            InputError: a dimension of a state is not known.
        """
        self.count, self.rows = count, rows
        self._states = states
        self._memory = [_allocated(state, count, rows) for state in states]

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved."""
        return sum(memory.nbytes for memory in self._memory)

    def view(self, first: int, count: int) -> tuple[SlotView, ...]:
        """Return ``count`` slots from ``first`` on, of every state."""
        return tuple(
            SlotView(state, memory[first : first + count])
            for state, memory in zip(self._states, self._memory)
        )

    def move(self, source: int, target: int, rows: int) -> None:
        """Move the first ``rows`` rows of one slot into another; where they were are zeros."""
        for state, memory in zip(self._states, self._memory):
            used = _rows_of(state, 0, rows)
            memory[target][used] = memory[source][used]
        self.clear(source, 0, rows)

    def clear(self, slot: int, start: int, stop: int) -> None:
        """Make rows zero: what is not valid takes no part, but it has to be finite."""
        for state, memory in zip(self._states, self._memory):
            memory[slot][_rows_of(state, start, stop)] = np.zeros((), memory.dtype)


def _allocated(state: State, count: int, rows: int) -> Array:
    shape = list(shape_without_rows(state, count))
    assert state.growth_axis is not None
    shape[state.growth_axis] = rows
    return aligned_zeros(tuple(shape), numpy_dtype(state.input))


def _rows_of(state: State, start: int, stop: int) -> tuple[slice, ...]:
    """Of one slot, which has no dimension of sequences."""
    assert state.growth_axis is not None
    return (*(slice(None),) * (state.growth_axis - 1), slice(start, stop))
