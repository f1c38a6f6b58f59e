"""`StateBuffer`: the memory of one state, as ONNX Runtime reads and writes it.

| state | input | output |
|---|---|---|
| buffer of a static model | all M rows | the same memory |
| growing, one sequence | the first P rows of the memory | its first P + S rows |
| growing, more sequences | ``[B, .., P, X]`` in one half | ``[B, .., P + S, X]`` in the other |
| recurrent | one half | the other |

The rows of one sequence lie one after the other, so past and present begin alike: the model copies
the past onto itself, which costs one comparison of addresses, and writes the new rows behind. With
more sequences the rows of all but the first move, so past and present cannot share memory. Two
preallocated halves then take what ONNX Runtime's own allocation of every present would take, and
are as fast; what is saved is the growth of its arena, which keeps the tensors of every length.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import numpy_dtype
from mla_opt.graphs.interface.interface import State
from mla_opt.ort_values import aligned_zeros, to_ort_value

Array = npt.NDArray[Any]


class StateBuffer:
    """Room for ``capacity`` rows of one state of ``batch`` sequences.

    `rows` gives the P valid rows as an array; `past` and `present` the tensors of a call. After
    the call, `advance` makes its present the next past.
    """

    def __init__(self, state: State, shape: tuple[int, ...], capacity: int) -> None:
        """``shape`` is the shape of the input without rows, its batch set."""
        self.state, self.axis = state, state.growth_axis
        self.dtype = numpy_dtype(state.input)
        self.capacity = capacity
        self._shape = shape
        self._halves: list[Array]
        self._values: list[ort.OrtValue]
        self._allocate()

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self._shape[0]

    @property
    def kind(self) -> str:
        """``growing``, ``buffer`` or ``recurrent``."""
        return self.state.kind

    @property
    def shares_memory(self) -> bool:
        """Whether past and present lie in the same memory."""
        if self.axis is None:
            return False
        return self.kind == "buffer" or math.prod(self._shape[: self.axis]) == 1

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved."""
        return sum(half.nbytes for half in self._halves)

    def rows(self, length: int) -> Array:
        """Return the first ``length`` rows of every sequence, a view into the memory."""
        if self.kind == "buffer":
            return self._whole()[(slice(None),) * self._rows_axis + (slice(0, length),)]
        return self._view(0, length)

    def past(self, length: int) -> ort.OrtValue:
        """The tensor that a call with ``length`` rows of past is fed."""
        return self._values[0] if self._values else to_ort_value(self._view(0, length))

    def present(self, length: int) -> ort.OrtValue:
        """The tensor that a call fills, with ``length`` rows when it is done."""
        if self._values:
            return self._values[-1]
        return to_ort_value(self._view(-1, length))

    def advance(self) -> None:
        """Let the present be the next past."""
        self._halves.reverse()
        self._values.reverse()

    def resize(self, capacity: int, length: int) -> None:
        """Take another capacity, and keep the first ``length`` rows."""
        kept = self.rows(length)
        self.capacity = capacity
        self._allocate()
        self.write(kept)

    def take(self, order: npt.NDArray[np.int64], length: int) -> None:
        """Let sequence i be what sequence ``order[i]`` was, of ``length`` rows each."""
        if np.array_equal(order, np.arange(self.batch)):
            return
        kept = self.rows(length)[order]
        if order.size != self.batch:
            self._shape = (order.size, *self._shape[1:])
            self._allocate()
        self.write(kept)

    def pad(self, batch: int, length: int) -> None:
        """Add sequences of zeros, up to ``batch``."""
        kept = self.rows(length)
        self._shape = (batch, *self._shape[1:])
        self._allocate()
        self.rows(length)[: kept.shape[0]] = kept

    def shorten(self, length: int, kept: int) -> None:
        """Forget all of ``length`` rows but the first ``kept``."""
        if self.axis is not None:
            self.write(self.rows(length)[(slice(None),) * self.axis + (slice(0, kept),)])

    def write(self, content: Array) -> None:
        """Overwrite the first rows by ``content``, which may be a view of other rows here."""
        length = content.shape[self._rows_axis] if self.axis is not None else 0
        target = self.rows(length)
        target[...] = content.copy() if np.may_share_memory(target, content) else content

    @property
    def _rows_axis(self) -> int:
        return 0 if self.axis is None else self.axis

    def _sized(self, length: int) -> tuple[int, ...]:
        if self.axis is None:
            return self._shape
        return (*self._shape[: self.axis], length, *self._shape[self.axis + 1 :])

    def _allocate(self) -> None:
        size = math.prod(self._sized(self.capacity))
        self._halves, self._values = [], []
        # Zeros, because a kernel may read rows that are not valid yet; untouched ones cost nothing.
        halves = 1 if self.shares_memory else 2
        self._halves = [aligned_zeros(size, self.dtype) for _ in range(halves)]
        if self.kind != "growing":
            whole = self._sized(self.capacity)
            self._values = [to_ort_value(half.reshape(whole)) for half in self._halves]

    def _whole(self) -> Array:
        return self._halves[0].reshape(self._sized(self.capacity))

    def _view(self, half: int, length: int) -> Array:
        shape = self._sized(length)
        return self._halves[half][: math.prod(shape)].reshape(shape)


def buffers(states: tuple[State, ...], batch: int, capacity: int) -> tuple[StateBuffer, ...]:
    """Return one buffer for each state.

    Raises:
        InputError: a dimension of a state is not known.
    """
    return tuple(StateBuffer(state, shape_without_rows(state, batch), capacity) for state in states)


def shape_without_rows(state: State, batch: int) -> tuple[int, ...]:
    """Shape of a state's input with no rows yet.

    Raises:
        InputError: a dimension is not known.
    """
    port = state.input
    if state.kind != "recurrent" and state.growth_axis is None:
        raise InputError(f"cache {port.name!r} grows along no dimension that is known")
    if port.axis_of("batch") != 0:
        raise InputError(f"dimension 0 of cache {port.name!r} does not count sequences")
    sizes: list[int] = [batch]
    for index, axis in enumerate(port.axes or ()):
        if index and index == state.growth_axis:
            sizes.append(0)
        elif index and isinstance(axis.size, int):
            sizes.append(axis.size)
        elif index:
            raise InputError(f"dimension {index} of cache {port.name!r} is unknown: {axis.size}")
    return tuple(sizes)
