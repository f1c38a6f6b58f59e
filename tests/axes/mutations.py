"""Changes to a value that make an attention something else, most of them only for some sizes.

A mutation is "POINT AXIS KIND LENGTH": at `value`, along `t`, `reversed` beyond `1000`. Some leave
a latent attention (heads permuted alike, say): what is asked is only that it is read rightly or
refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import numpy_helper

from tests.axes import by_count
from tests.axes.tape import Tape, Value

POINTS = {
    "latent": "btw",
    "second": "btw",
    "k_pe": "btw",
    "nope": "bthw",
    "value": "bthw",
    "key": "bthw",
    "kept_value": "bthw",
    "made_query": "bshw",
    "query": "bshw",
    "last_key": "bt",
    "product": "bsth",
    "scores": "bsth",
    "masked": "bsth",
    "probs": "bsth",
    "context": "bshw",
    "sinks": "bsh",
}
"""Where a mutation may be, and the axes it may act on there; ``w`` is the last one."""

LENGTHS = {"b": (0, 2, 3), "t": (0, 3, 100, 1000), "s": (0, 3, 100, 200), "h": (0, 1), "w": (0, 1)}
"""Beyond which length it acts, by axis."""

COUNTS = {"s": (3, 100, 200), "t": (3, 100, 1000)}
"""Tokens, of the query or in sight, beyond which heads or width are others."""

Change = Callable[[Tape, Value, int, int], str]


def every() -> list[str]:
    """All mutations that there are."""
    return [
        f"{point} {axis} {kind} {length}"
        for point, letters in POINTS.items()
        for axis in letters
        for kind in _kinds(point, axis)
        for length in _lengths(letters, axis, kind)
    ]


def _kinds(point: str, axis: str) -> tuple[str, ...]:
    whole = tuple(WHOLE) if axis == POINTS[point][0] else ()
    along = tuple(ALONG) if point != "sinks" or axis == "h" else OF_NUMBERS
    return (*along, *whole, *(by_count.KINDS if axis in "hw" else ()))


def _lengths(letters: str, axis: str, kind: str) -> tuple[int, ...]:
    if kind in by_count.KINDS:
        return COUNTS["s" if "s" in letters else "t"]
    return LENGTHS[axis] if kind in ALONG else (0,)


def applied(tape: Tape, value: Value, mutation: str) -> Value:
    """The value after a mutation; as it is where it has no such axis."""
    _, letter, kind, length = mutation.split()
    wanted = {"h": "hj", "t": "ts", "s": "s", "b": "b", "w": value.axes[-1]}[letter]
    places = [value.place(each) for each in wanted if each in value.axes]
    if not places:
        return value
    if kind in by_count.KINDS:
        made = by_count.applied(tape, value, places[0], kind, int(length))
        return Value(made, value.axes)
    change = ALONG.get(kind) or WHOLE[kind]
    return Value(change(tape, value, places[0], int(length)), value.axes)


def _size(tape: Tape, value: Value, place: int) -> str:
    return tape.op("Squeeze", tape.size_at(value.name, place), tape.ints(0))


def _range(tape: Tape, size: str) -> str:
    return tape.op("Range", tape.whole(0), size, tape.whole(1))


def _beyond(tape: Tape, value: Value, place: int, length: int, otherwise: str) -> str:
    """Indices: themselves up to a length, those of ``otherwise`` beyond."""
    size = _size(tape, value, place)
    index = _range(tape, size)
    last = tape.op("Sub", size, tape.whole(1))
    if otherwise == "reversed":
        other = tape.op("Sub", tape.op("Add", last, tape.whole(length)), index)
    elif otherwise == "first":
        other = tape.op("Mul", index, tape.whole(0))
    elif otherwise == "rolled":
        following = tape.op("Add", index, tape.whole(1))
        over = tape.op("Greater", following, last)
        other = tape.op("Where", over, tape.whole(length), following)
    else:  # the one before, so that the last one is dropped
        before = tape.op("Sub", index, tape.whole(1))
        other = tape.op("Max", before, tape.whole(0))
    return tape.op("Where", tape.op("Less", index, tape.whole(length)), index, other)


def _taken(otherwise: str) -> Change:
    def change(tape: Tape, value: Value, place: int, length: int) -> str:
        return tape.op(
            "Gather", value.name, _beyond(tape, value, place, length, otherwise), axis=place
        )

    return change


def _scattered(tape: Tape, value: Value, place: int, length: int) -> str:
    """Rows are put where they belong up to a length, and in reverse beyond."""
    rank = len(value.axes)
    order = [place, *(each for each in range(rank) if each != place)]
    first = tape.op("Transpose", value.name, perm=order)
    index = _beyond(tape, value, place, length, "reversed")
    empty = _empty(tape, first)
    put = tape.op("ScatterND", empty, tape.op("Unsqueeze", index, tape.ints(1)), first)
    return tape.op("Transpose", put, perm=[int(each) for each in np.argsort(order)])


def _empty(tape: Tape, like: str) -> str:
    zero = numpy_helper.from_array(np.zeros(1, tape.dtype))
    return tape.op("ConstantOfShape", tape.op("Shape", like), value=zero)


def _scattered_elements(tape: Tape, value: Value, place: int, length: int) -> str:
    """The same by ScatterElements."""
    index = _beyond(tape, value, place, length, "reversed")
    ones = [each for each in range(len(value.axes)) if each != place]
    column = tape.op("Unsqueeze", index, tape.ints(*ones)) if ones else index
    indices = tape.op("Expand", column, tape.op("Shape", value.name))
    return tape.op("ScatterElements", _empty(tape, value.name), indices, value.name, axis=place)


def _dropped(tape: Tape, value: Value, place: int, length: int) -> str:
    """Rows are put where they belong, up to a length: those beyond stay empty."""
    rank = len(value.axes)
    order = [place, *(each for each in range(rank) if each != place)]
    first = tape.op("Transpose", value.name, perm=order)
    kept = tape.op("Slice", first, tape.ints(0), tape.ints(length + 1), tape.ints(0))
    count = tape.op("Squeeze", tape.size_at(kept, 0), tape.ints(0))
    index = tape.op("Unsqueeze", _range(tape, count), tape.ints(1))
    put = tape.op("ScatterND", _empty(tape, first), index, kept)
    return tape.op("Transpose", put, perm=[int(each) for each in np.argsort(order)])


def _mixed(tape: Tape, value: Value, place: int, length: int) -> str:
    """What is beyond a length is rolled, by Slice and Concat."""
    axis, end = tape.ints(place), tape.ints(2**62)
    kept = tape.op("Slice", value.name, tape.ints(0), tape.ints(length), axis)
    rest = tape.op("Slice", value.name, tape.ints(length), end, axis)
    one = tape.op("Min", tape.size_at(rest, place), tape.ints(1))
    later = tape.op("Slice", rest, one, end, axis)
    sooner = tape.op("Slice", rest, tape.ints(0), one, axis)
    return tape.op("Concat", kept, later, sooner, axis=place)


def _cropped(tape: Tape, value: Value, place: int, length: int) -> str:
    """Zeros beyond a length, by Slice and Pad."""
    kept = tape.op("Slice", value.name, tape.ints(0), tape.ints(length + 1), tape.ints(place))
    missing = tape.op("Sub", tape.size_at(value.name, place), tape.size_at(kept, place))
    return _padded(tape, kept, len(value.axes), (place, missing), front=False)


def _windowed(tape: Tape, value: Value, place: int, length: int) -> str:
    """Zeros before the last few."""
    kept = tape.op("Slice", value.name, tape.ints(-length - 1), tape.ints(2**62), tape.ints(place))
    missing = tape.op("Sub", tape.size_at(value.name, place), tape.size_at(kept, place))
    return _padded(tape, kept, len(value.axes), (place, missing), front=True)


def _padded(tape: Tape, value: str, rank: int, amount: tuple[int, str], *, front: bool) -> str:
    place, missing = amount
    pads = [tape.ints(0)] * (2 * rank)
    pads[place if front else rank + place] = missing
    return tape.op("Pad", value, tape.op("Concat", *pads, axis=0))


def _joined_cut(tape: Tape, value: Value, place: int, length: int) -> str:
    """Zeros beyond a length, by Slice and Concat."""
    ends = (tape.ints(0), tape.ints(length + 1), tape.ints(2**62))
    kept = tape.op("Slice", value.name, ends[0], ends[1], tape.ints(place))
    rest = tape.op("Slice", value.name, ends[1], ends[2], tape.ints(place))
    return tape.op("Concat", kept, tape.op("Mul", rest, tape.number(0.0)), axis=place)


def _turned_round(tape: Tape, value: Value, place: int, length: int) -> str:
    """The end first, by Slice and Concat."""
    at = tape.ints(length + 1)
    kept = tape.op("Slice", value.name, tape.ints(0), at, tape.ints(place))
    rest = tape.op("Slice", value.name, at, tape.ints(2**62), tape.ints(place))
    return tape.op("Concat", rest, kept, axis=place)


def _backwards(tape: Tape, value: Value, place: int, length: int) -> str:
    """All in reverse beyond a length, by a negative step."""
    at = tape.ints(length)
    kept = tape.op("Slice", value.name, tape.ints(0), at, tape.ints(place))
    rest = tape.op("Slice", value.name, at, tape.ints(2**62), tape.ints(place))
    back = tape.op(
        "Slice", rest, tape.ints(-1), tape.ints(-(2**62)), tape.ints(place), tape.ints(-1)
    )
    return tape.op("Concat", kept, back, axis=place)


def _swapped(tape: Tape, value: Value, place: int, length: int) -> str:
    """The last two change places where there are more than a length."""
    size = _size(tape, value, place)
    index = _range(tape, size)
    other = tape.op("Sub", tape.op("Sub", tape.op("Add", size, size), tape.whole(3)), index)
    behind = tape.op("Greater", index, tape.op("Sub", size, tape.whole(3)))
    many = tape.op("Greater", size, tape.whole(max(length, 1)))
    chosen = tape.op("Where", tape.op("And", behind, many), other, index)
    return tape.op("Gather", value.name, chosen, axis=place)


def _louder(tape: Tape, value: Value, place: int, length: int) -> str:
    """Twice as large beyond a length."""
    index = _range(tape, _size(tape, value, place))
    beyond = tape.op("Less", tape.whole(length), index)
    factor = tape.op("Where", beyond, tape.number(2.0), tape.number(1.0))
    ones = range(1, len(value.axes) - place)
    if ones:
        factor = tape.op("Unsqueeze", factor, tape.ints(*ones))
    return tape.op("Mul", value.name, factor)


def _by_count(tape: Tape, value: Value, place: int, length: int) -> str:
    """All of it twice as large where there are more than a length."""
    many = tape.op("Greater", _size(tape, value, place), tape.whole(max(length, 1)))
    return tape.op("Mul", value.name, tape.op("Where", many, tape.number(2.0), tape.number(1.0)))


def _summed(tape: Tape, value: Value, place: int, length: int) -> str:
    """A little of the sum so far."""
    running = tape.op("CumSum", value.name, tape.whole(place))
    return tape.op("Add", value.name, tape.op("Mul", running, tape.number(0.25)))


def _centred(tape: Tape, value: Value, place: int, length: int) -> str:
    """Less the mean along the axis."""
    return tape.op("Sub", value.name, tape.reduced("ReduceMean", value.name, place))


def _misread(tape: Tape, value: Value, place: int, length: int) -> str:
    """Read in another order of the axes before the last, as a view without a transpose is."""
    rank = len(value.axes)
    other = (place + 1) % (rank - 1) if rank > 2 and place < rank - 1 else rank - 1 - place
    order = list(range(rank))
    order[place], order[other] = order[other], order[place]
    turned = tape.op("Transpose", value.name, perm=order)
    return tape.op("Reshape", turned, tape.op("Shape", value.name))


def _curved(tape: Tape, value: Value, place: int, length: int) -> str:
    cube = tape.op("Mul", tape.op("Mul", value.name, value.name), value.name)
    return tape.op("Add", value.name, tape.op("Mul", cube, tape.number(0.01)))


def _clipped(tape: Tape, value: Value, place: int, length: int) -> str:
    return tape.op("Clip", value.name, tape.number(-1.0), tape.number(1.0))


def _absolute(tape: Tape, value: Value, place: int, length: int) -> str:
    return tape.op("Abs", value.name)


def _negated(tape: Tape, value: Value, place: int, length: int) -> str:
    return tape.op("Neg", value.name)


def _softened(tape: Tape, value: Value, place: int, length: int) -> str:
    return tape.op(
        "Mul", tape.op("Tanh", tape.op("Mul", value.name, tape.number(0.1))), tape.number(10.0)
    )


def _by_log(tape: Tape, value: Value, place: int, length: int) -> str:
    """Scaled by the logarithm of a length, as for long contexts."""
    size = tape.cast(_size(tape, value, place), np.float32)
    factor = tape.op("Log", tape.op("Add", size, tape.number(2.0, np.float32)))
    return tape.op("Mul", value.name, tape.cast(factor, tape.dtype))


ALONG: dict[str, Change] = {
    "reversed": _taken("reversed"),
    "first": _taken("first"),
    "rolled": _taken("rolled"),
    "before": _taken("before"),
    "scattered": _scattered,
    "scattered_elements": _scattered_elements,
    "dropped": _dropped,
    "mixed": _mixed,
    "cropped": _cropped,
    "windowed": _windowed,
    "cut": _joined_cut,
    "turned": _turned_round,
    "backwards": _backwards,
    "swapped": _swapped,
    "louder": _louder,
    "by_count": _by_count,
}
"""What acts along an axis, beyond a length."""

OF_NUMBERS = ("cropped", "windowed", "cut", "dropped", "louder", "by_count")
"""What acts along an axis whose places all hold the same, too."""

WHOLE: dict[str, Change] = {
    "summed": _summed,
    "centred": _centred,
    "misread": _misread,
    "curved": _curved,
    "clipped": _clipped,
    "absolute": _absolute,
    "negated": _negated,
    "softened": _softened,
    "by_log": _by_log,
}
"""What acts everywhere."""
