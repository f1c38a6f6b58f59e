"""Changes to heads or width that follow from how many tokens there are: none up to a length.

Sizes tell what each does to the axis, whose own size is a number: only the places that it takes
differ from call to call. ``more`` is 0 up to the length, and 1 beyond it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import numpy_helper

from tests.axes.tape import Tape, Value

Change = Callable[[Tape, Value, int, str], str]


def applied(tape: Tape, value: Value, place: int, kind: str, length: int) -> str:
    """The value after a change along the axis at ``place``."""
    tokens = next((at for at, axis in enumerate(value.axes) if axis in ("t", "s")), None)
    if tokens is None:
        return value.name
    count = tape.size_at(value.name, tokens)
    longest = tape.op("Max", count, tape.ints(length))
    more = tape.op("Min", tape.op("Sub", longest, tape.ints(length)), tape.ints(1))
    return KINDS[kind](tape, value, place, more)


def _size(tape: Tape, value: Value, place: int) -> int:
    return tape.sizes[value.axes[place]] if value.axes[place] != "1" else 1


def _exchanged(tape: Tape, value: Value, place: int, more: str) -> str:
    """The first two change places."""
    size = _size(tape, value, place)
    if size < 2:
        return value.name
    rest = [tape.ints(*range(2, size))] if size > 2 else []
    index = tape.op("Concat", more, tape.op("Sub", tape.ints(1), more), *rest, axis=0)
    return tape.op("Gather", value.name, index, axis=place)


def _rolled(tape: Tape, value: Value, place: int, more: str) -> str:
    """By one, by a slice of two copies."""
    twice = tape.op("Concat", value.name, value.name, axis=place)
    end = tape.op("Add", more, tape.ints(_size(tape, value, place)))
    return tape.op("Slice", twice, more, end, tape.ints(place))


def _padded(tape: Tape, value: Value, place: int, more: str) -> str:
    """By one, by a pad in front and as much less behind."""
    rank = len(value.axes)
    pads = [tape.ints(0)] * (2 * rank)
    pads[place], pads[rank + place] = more, tape.op("Neg", more)
    return tape.op("Pad", value.name, tape.op("Concat", *pads, axis=0))


def _put(tape: Tape, value: Value, place: int, more: str) -> str:
    """By one, written into an empty tensor."""
    rank, size = len(value.axes), _size(tape, value, place)
    order = [place, *(each for each in range(rank) if each != place)]
    first = tape.op("Transpose", value.name, perm=order)
    zero = numpy_helper.from_array(np.zeros(1, tape.dtype))
    longer = tape.op("Concat", first, first, axis=0)
    empty = tape.op("ConstantOfShape", tape.op("Shape", longer), value=zero)
    index = tape.op("Add", tape.array(np.arange(size)), more)
    put = tape.op("ScatterND", empty, tape.op("Unsqueeze", index, tape.ints(1)), first)
    kept = tape.op("Slice", put, tape.ints(0), tape.ints(size), tape.ints(0))
    return tape.op("Transpose", kept, perm=[int(each) for each in np.argsort(order)])


def _led(tape: Tape, value: Value, place: int, more: str) -> str:
    """All are the first one, or the second."""
    size = _size(tape, value, place)
    one = tape.op("Gather", value.name, tape.op("Squeeze", more, tape.ints(0)), axis=place)
    shape = [1] * len(value.axes)
    shape[place] = size
    return tape.op("Expand", tape.op("Unsqueeze", one, tape.ints(place)), tape.ints(*shape))


def _parted(tape: Tape, value: Value, place: int, more: str) -> str:
    """Cut in three, the middle as long as ever, and put together the other way round."""
    size = _size(tape, value, place)
    left = tape.op("Sub", tape.ints(1), more)
    cuts = tape.op("Concat", more, tape.ints(size - 1), left, axis=0)
    parts = tape.many("Split", 3, value.name, cuts, axis=place)
    return tape.op("Concat", *parts[1::-1], parts[2], axis=place)


KINDS: dict[str, Change] = {
    "exchanged_by_count": _exchanged,
    "rolled_by_count": _rolled,
    "padded_by_count": _padded,
    "put_by_count": _put,
    "led_by_count": _led,
    "parted_by_count": _parted,
}
