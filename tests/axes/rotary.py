"""Rotary embedding, in the ways it is written."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from tests.axes.buffers import places
from tests.axes.feeding import Array
from tests.axes.model import CACHED, TABLE, Model
from tests.axes.tape import Value, axes


@dataclass
class Rotary:
    """Cosine and sine of the new tokens (`s`) or of all in sight (`t`), made once."""

    model: Model
    made: dict[str, tuple[Value, Value]] = field(default_factory=dict)

    def turned(self, value: Value, letter: str) -> Value:
        """``value`` with its last axis `r` turned by the position of its tokens."""
        if letter not in self.made:
            self.made[letter] = self._angles(letter, value)
        cos, sin = (self._beside(each, value) for each in self.made[letter])
        kind = self.model.plan.rotary_form
        if kind == "turned":
            return self._by_turning(value, cos, sin)
        if kind == "pairs":
            return self._in_pairs(value, cos, sin)
        first, second = self._halves(value)
        return Value(self._rotated(first, second, cos, sin, axis=-1), value.axes)

    # Angles

    def _pace(self) -> Array:
        half = self.model.sizes["f"]
        return np.asarray(10.0 ** -np.arange(0, 2, 2 / half)[:half])

    def _angles(self, letter: str, value: Value) -> tuple[Value, Value]:
        tape, kind = self.model.tape, self.model.plan.table
        if kind == "computed":
            place = self._positions(letter, value)
            column = tape.op("Unsqueeze", place.name, tape.ints(len(place.axes)))
            angle = tape.op(
                "Mul", tape.cast(column, np.float32), tape.array(self._pace().astype(np.float32))
            )
            pair = (tape.op("Cos", angle), tape.op("Sin", angle))
            if tape.dtype != np.float32:
                pair = (tape.cast(pair[0], tape.dtype), tape.cast(pair[1], tape.dtype))
            return Value(pair[0], (*place.axes, "f")), Value(pair[1], (*place.axes, "f"))
        tables = self._tables()
        if kind == "gathered":
            place = self._positions(letter, value)
            return tuple(  # type: ignore[return-value]
                Value(tape.op("Gather", each, place.name, axis=0), (*place.axes, "f"))
                for each in tables
            )
        start = self._past() if letter == "s" else tape.ints(0)
        end = tape.op("Add", start, tape.size(letter, value))
        return tuple(  # type: ignore[return-value]
            Value(tape.op("Slice", each, start, end, tape.ints(0)), (letter, "f"))
            for each in tables
        )

    def _tables(self) -> tuple[str, str]:
        tape = self.model.tape
        angle = np.arange(TABLE)[:, None].astype(np.float32) * self._pace().astype(np.float32)
        return tape.weight(np.cos(angle), "cos_table"), tape.weight(np.sin(angle), "sin_table")

    def _positions(self, letter: str, value: Value) -> Value:
        """Places as `bs`, or one list for all sequences."""
        tape, model = self.model.tape, self.model
        if letter == "s" and model.plan.static:
            return places(model)
        if letter == "s" and model.plan.positions == "input":
            return Value(tape.input("position_ids", ("B", "S"), TensorProto.INT64), ("b", "s"))
        start = self._past() if letter == "s" else tape.ints(0)
        end = tape.op("Add", start, tape.size(letter, value))
        ends = (tape.op("Squeeze", each, tape.ints(0)) for each in (start, end))
        return Value(tape.op("Range", *ends, tape.whole(1)), (letter,))

    def _past(self) -> str:
        """How many tokens are in the past, read off a cache."""
        return past_of(self.model)

    # Rotation

    def _beside(self, angle: Value, value: Value) -> Value:
        """Angles shaped to be multiplied with a value."""
        wanted = [axis if axis in angle.axes else "1" for axis in value.axes[:-1]]
        while wanted and wanted[0] == "1":
            wanted.pop(0)
        return self.model.tape.arranged(angle, (*wanted, "f"))

    def _halves(self, value: Value) -> tuple[str, str]:
        tape, half = self.model.tape, self.model.sizes["f"]
        if self.model.plan.rotary == "half":
            first, second = tape.many("Split", 2, value.name, tape.ints(half, half), axis=-1)
            return first, second
        ends, last, step = tape.ints(2**62), tape.ints(-1), tape.ints(2)
        return (
            tape.op("Slice", value.name, tape.ints(0), ends, last, step),
            tape.op("Slice", value.name, tape.ints(1), ends, last, step),
        )

    def _rotated(self, first: str, second: str, cos: Value, sin: Value, axis: int) -> str:
        tape = self.model.tape
        real = tape.op("Sub", tape.op("Mul", first, cos.name), tape.op("Mul", second, sin.name))
        turned = tape.op("Add", tape.op("Mul", second, cos.name), tape.op("Mul", first, sin.name))
        return tape.op("Concat", real, turned, axis=axis)

    def _by_turning(self, value: Value, cos: Value, sin: Value) -> Value:
        """`x cos + rotate_half(x) sin`."""
        tape = self.model.tape
        first, second = self._halves(value)
        half = tape.op("Concat", tape.op("Neg", second), first, axis=-1)
        wide = [tape.op("Concat", each.name, each.name, axis=-1) for each in (cos, sin)]
        parts = (tape.op("Mul", value.name, wide[0]), tape.op("Mul", half, wide[1]))
        return Value(tape.op("Add", *parts), value.axes)

    def _in_pairs(self, value: Value, cos: Value, sin: Value) -> Value:
        """As complex numbers are multiplied: pairs on an axis of their own."""
        tape, half = self.model.tape, self.model.sizes["f"]
        rank = len(value.axes)
        shape = [0] * (rank - 1)
        pairs = tape.op("Reshape", value.name, tape.ints(*shape, half, 2))
        index = [tape.whole(0), tape.whole(1)]
        first, second = (tape.op("Gather", pairs, each, axis=rank) for each in index)
        last = tape.ints(rank)
        real = tape.op("Sub", tape.op("Mul", first, cos.name), tape.op("Mul", second, sin.name))
        turned = tape.op("Add", tape.op("Mul", first, sin.name), tape.op("Mul", second, cos.name))
        both = [tape.op("Unsqueeze", each, last) for each in (real, turned)]
        stacked = tape.op("Concat", *both, axis=rank)
        return Value(tape.op("Reshape", stacked, tape.ints(*shape, 2 * half)), value.axes)


def past_of(model: Model) -> str:
    """How many tokens are in the past, as a list of one number, read off the first cache."""
    tape = model.tape
    caches = [name for name in tape.inputs if name.startswith("past")]
    if not caches:
        return _past_to_come(model)
    shape = tape.inputs[caches[0]].type.tensor_type.shape.dim
    return tape.size_at(caches[0], [dim.dim_param for dim in shape].index("P"))


def _past_to_come(model: Model) -> str:
    """The cache's input is declared by whoever joins it; here it is only measured."""
    plan, tape = model.plan, model.tape
    if plan.cache == "none":
        return tape.ints(0)
    name, letter = ("latent", "l") if plan.cache.endswith("joint") else ("key", "c")
    kind = "latent"
    if plan.groups == "apart":
        letter = "d"
    if plan.expanded:
        kind, letter = "expanded", "k"
    if letter == "l" and plan.rotary == "none":
        name, letter = "key", "c"
    held = axes(CACHED[kind][plan.cache_axes].format(letter))
    past = tape.input(f"past.{model.layer}.{name}", model.shape(held, "P"))
    return tape.size_at(past, held.index("t"))
