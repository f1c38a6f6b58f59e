"""Keys and values of all heads from rows, in every way that the weights are stored and applied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.axes.feeding import Array
from tests.axes.model import Model, Rows
from tests.axes.tape import Value

Pair = tuple[Value, Value]

SMALL = 3e-6
"""What a tolerance of a whole tensor may not see."""


@dataclass(frozen=True)
class Projection:
    """W_UK [J, N, C] and W_UV [J, V, C] of some heads, and the letters of their axes.

    ``heads`` and ``width`` are letters, ``name`` ends the names of what is stored.
    """

    keys: Array
    values: Array
    heads: str = "j"
    width: str = "c"
    name: str = ""

    def joint(self) -> Array:
        """[C, J (N + V)]: each head's key and value side by side."""
        both = np.concatenate([self.keys, self.values], axis=1)
        return both.reshape(-1, both.shape[2]).T

    def apart(self) -> tuple[Array, Array]:
        """[C, J N] and [C, J V]."""
        width = self.keys.shape[2]
        return self.keys.reshape(-1, width).T, self.values.reshape(-1, width).T


@dataclass(frozen=True)
class KeysAndValues:
    """The region between rows and attention."""

    model: Model

    def weights(self) -> tuple[Array, Array]:
        """W_UK and W_UV; numbers that 16 bits hold, so that how they are stored changes nothing."""
        model = self.model
        j, n, v = (model.sizes[letter] for letter in "jnv")
        c = model.sizes["d" if model.plan.grouped else "c"]
        keys, values = (
            model.drawn("k_up", j, n, c, fan_in=c),
            model.drawn("v_up", j, v, c, fan_in=c),
        )
        if model.mutated("small"):
            values[-1] *= SMALL
            return keys, values
        return tuple(each.astype(np.float16).astype(np.float64) for each in (keys, values))  # type: ignore[return-value]

    def values_of(self, rows: Rows, t: str) -> Value:
        """The values alone."""
        return self.made(rows, t)[1]

    def made(self, rows: Rows, t: str) -> tuple[list[Value], Value]:
        """Parts of the keys (`bjtn`, `bjtr` or `btjn`, `btjr`), and the values."""
        model = self.model
        keys, values = self.weights()
        nope, value = self._by_groups(rows, t, Projection(keys, values))
        if model.mutated("values_elsewhere"):
            other = model.tape.along("Tanh", rows.latent)
            if not model.plan.grouped:
                value = self._of_one(other, t, Projection(keys, values, name=".other"))[1]
        nope = model.at("nope", self._affine(nope, "keys", "key", "n"))
        value = self._affine(value, "values", "value", "v")
        value = model.at("value", value)
        if model.mutated("small"):
            value = self._last_reversed(value, t)
        parts = [nope]
        if rows.rope:
            parts.append(self.repeated(rows.rope, t))
        if rows.rope and model.mutated("small_k_pe"):
            parts[1] = self._small_rope(parts[1], t)
        return parts, value

    def _placed(self, t: str, letter: str, heads: str = "j") -> str:
        """Axes of what each head has for each token."""
        return f"b{heads}{t}{letter}" if self.model.plan.place == "bht" else f"b{t}{heads}{letter}"

    # One row for all heads, or one for each group

    def _by_groups(self, rows: Rows, t: str, weights: Projection) -> Pair:
        tape, kind = self.model.tape, self.model.plan.groups
        if kind == "one":
            return self._of_one(rows.latent, t, weights)
        if kind in ("axis", "each"):
            return self._of_axis(rows.latent, t, weights)
        if rows.second is not None:
            halves = [tape.arranged(each, f"b{t}d") for each in (rows.latent, rows.second)]
        else:
            halves = tape.parts(tape.arranged(rows.latent, f"b{t}c"), "c", "dd")
        return self._of_groups(halves, t, weights)

    def _of_axis(self, latent: Value, t: str, weights: Projection) -> Pair:
        """All groups in one product, of an axis of its own."""
        tape, sizes = self.model.tape, self.model.sizes
        flat = tape.arranged(latent, f"b{t}c").name
        rows = tape.op("Reshape", flat, tape.ints(0, 0, sizes["g"], sizes["d"]))
        made = []
        for content, name, letter in zip((weights.keys, weights.values), ("k_up", "v_up"), "nv"):
            by_group = content.reshape(sizes["g"], sizes["m"], *content.shape[1:])
            stored = self._stored(by_group, name, weights)
            placed = self._placed(t, letter)
            equation = f"b{t}gd,gm{letter}d->{placed.replace('j', 'gm')}"
            whole = tape.op("Einsum", rows, stored, equation=equation)
            shape = {"b": 0, t: -1, "j": sizes["j"], letter: sizes[letter]}
            merged = tape.op("Reshape", whole, tape.ints(*(shape[each] for each in placed)))
            made.append(Value(merged, tuple(placed)))
        return made[0], made[1]

    def _of_groups(self, halves: list[Value], t: str, weights: Projection) -> Pair:
        tape, half = self.model.tape, self.model.sizes["m"]
        made = []
        for group, rows in enumerate(halves):
            own = slice(group * half, (group + 1) * half)
            one = Projection(weights.keys[own], weights.values[own], "m", "d", f".{group}")
            made.append(self._of_one(rows, t, one))
        both = []
        for each, letter in zip(zip(*made), "nv"):
            both.append(tape.joined(list(each), "mm", "j"))
            assert both[-1].letters == self._placed(t, letter)
        return both[0], both[1]

    def _of_one(self, latent: Value, t: str, weights: Projection) -> Pair:
        made = getattr(self, f"_{self.model.plan.storage}")(latent, t, weights)
        keys, values = (
            self.model.tape.arranged(each, self._placed(t, letter, weights.heads))
            for each, letter in zip(made, "nv")
        )
        return keys, values

    # Storage: each makes keys and values of all heads, in any order of axes

    def _stored(self, content: Array, name: str, weights: Projection) -> str:
        return self.model.tape.weight(content, self.model.named(name + weights.name))

    def _flat(self, latent: Value, t: str, weight: str, heads: str, letter: str) -> Value:
        """``latent @ weight`` with heads and width in one axis."""
        made = self.model.tape.op("MatMul", latent.name, weight)
        return Value(made, (*latent.axes[:-1], heads + letter))

    def _side_by_side(self, flat: Value, t: str, weights: Projection) -> Pair:
        heads = weights.heads
        placed = self.model.tape.arranged(flat, self._placed(t, "x", heads))
        nope, value = self.model.tape.parts(placed, "x", "nv")
        return nope, value

    def _joint(self, latent: Value, t: str, weights: Projection) -> Pair:
        weight = self._stored(weights.joint(), "kv_b", weights)
        return self._side_by_side(self._flat(latent, t, weight, weights.heads, "x"), t, weights)

    def _turned(self, latent: Value, t: str, weights: Projection) -> Pair:
        stored = self._stored(weights.joint().T, "kv_b", weights)
        weight = self.model.tape.op("Transpose", stored, perm=[1, 0])
        return self._side_by_side(self._flat(latent, t, weight, weights.heads, "x"), t, weights)

    def _half(self, latent: Value, t: str, weights: Projection) -> Pair:
        tape = self.model.tape
        stored = tape.array(
            weights.joint().astype(np.float16), self.model.named("kv_b" + weights.name)
        )
        weight = tape.cast(stored, tape.dtype)
        return self._side_by_side(self._flat(latent, t, weight, weights.heads, "x"), t, weights)

    def _lora(self, weights: Projection) -> tuple[Array, Array, Array]:
        """W, A and B whose `W + A B` is the joint weight."""
        joint = weights.joint()
        width, made = joint.shape
        down = self.model.drawn("lora_a" + weights.name, width, 2, fan_in=width)
        up = self.model.drawn("lora_b" + weights.name, 2, made)
        return joint - down @ up, down, up

    def _lora_weight(self, latent: Value, t: str, weights: Projection) -> Pair:
        base, down, up = (
            self._stored(each, name, weights)
            for each, name in zip(self._lora(weights), ("kv_b", "lora_a", "lora_b"))
        )
        tape = self.model.tape
        weight = tape.op("Add", base, tape.op("MatMul", down, up))
        return self._side_by_side(self._flat(latent, t, weight, weights.heads, "x"), t, weights)

    def _lora_rows(self, latent: Value, t: str, weights: Projection) -> Pair:
        base, down, up = (
            self._stored(each, name, weights)
            for each, name in zip(self._lora(weights), ("kv_b", "lora_a", "lora_b"))
        )
        tape = self.model.tape
        added = tape.op("MatMul", tape.op("MatMul", latent.name, down), up)
        flat = self._flat(latent, t, base, weights.heads, "x")
        return self._side_by_side(tape.along("Add", flat, added), t, weights)

    def _gemm(self, latent: Value, t: str, weights: Projection) -> Pair:
        tape, heads = self.model.tape, weights.heads
        rows = tape.arranged(latent, f"(b{t}){weights.width}")
        stored = self._stored(weights.joint().T, "kv_b", weights)
        made = tape.op("Gemm", rows.name, stored, transB=1)
        return self._side_by_side(Value(made, (f"b{t}", f"{heads}x")), t, weights)

    def _conv(self, latent: Value, t: str, weights: Projection) -> Pair:
        tape = self.model.tape
        channels = tape.arranged(latent, f"b{weights.width}{t}")
        stored = self._stored(weights.joint().T[:, :, None], "kv_b", weights)
        made = tape.op("Conv", channels.name, stored, kernel_shape=[1])
        return self._side_by_side(Value(made, ("b", f"{weights.heads}x", t)), t, weights)

    def _keys_then_values(self, latent: Value, t: str, weights: Projection) -> Pair:
        tape, heads = self.model.tape, weights.heads
        apart = weights.apart()
        stored = self._stored(np.concatenate(apart, axis=1), "kv_b", weights)
        made = tape.op("MatMul", latent.name, stored)
        sizes = tape.ints(*(each.shape[1] for each in apart))
        names = tape.many("Split", 2, made, sizes, axis=-1)
        nope, value = (
            Value(name, (*latent.axes[:-1], heads + letter)) for name, letter in zip(names, "nv")
        )
        return nope, value

    def _separate(self, latent: Value, t: str, weights: Projection) -> Pair:
        nope, value = (
            self._flat(latent, t, self._stored(each, name, weights), weights.heads, letter)
            for each, name, letter in zip(weights.apart(), ("k_up", "v_up"), "nv")
        )
        return nope, value

    def _separate_of_one(self, latent: Value, t: str, weights: Projection) -> Pair:
        flat = self.model.tape.arranged(latent, f"b{t}{weights.width}")
        nope, value = (
            self._flat(flat, t, self._stored(each[None], name, weights), weights.heads, letter)
            for each, name, letter in zip(weights.apart(), ("k_up", "v_up"), "nv")
        )
        return nope, value

    def _slices(self, latent: Value, t: str, weights: Projection) -> Pair:
        tape, apart = self.model.tape, weights.apart()
        stored = self._stored(np.concatenate(apart, axis=1), "kv_b", weights)
        cut, last = apart[0].shape[1], tape.ints(1)
        first = tape.op("Slice", stored, tape.ints(0), tape.ints(cut), last)
        second = tape.op("Slice", stored, tape.ints(cut), tape.ints(2**62), last)
        return (
            self._flat(latent, t, first, weights.heads, "n"),
            self._flat(latent, t, second, weights.heads, "v"),
        )

    def _split(self, latent: Value, t: str, weights: Projection) -> Pair:
        """One weight [J, N + V, C] cut into W_UK and W_UV, each applied to all heads at once."""
        tape = self.model.tape
        both = np.concatenate([weights.keys, weights.values], axis=1)
        stored = self._stored(both, "kv_b", weights)
        sizes = tape.ints(weights.keys.shape[1], weights.values.shape[1])
        names = tape.many("Split", 2, stored, sizes, axis=1)
        turned = [tape.op("Transpose", name, perm=[0, 2, 1]) for name in names]
        return self._by_head(latent, t, turned, weights)

    def _matmul3(self, latent: Value, t: str, weights: Projection) -> Pair:
        stored = [
            self._stored(each.transpose(0, 2, 1), name, weights)
            for each, name in zip((weights.keys, weights.values), ("k_up", "v_up"))
        ]
        return self._by_head(latent, t, stored, weights)

    def _by_head(self, latent: Value, t: str, stored: list[str], weights: Projection) -> Pair:
        tape = self.model.tape
        rows = tape.arranged(latent, f"b1{t}{weights.width}")
        nope, value = (
            Value(tape.op("MatMul", rows.name, each), ("b", weights.heads, t, letter))
            for each, letter in zip(stored, "nv")
        )
        return nope, value

    def _einsum(self, latent: Value, t: str, weights: Projection) -> Pair:
        tape, heads, width = self.model.tape, weights.heads, weights.width
        rows = tape.arranged(latent, f"b{t}{width}")
        made = []
        for each, name, letter in zip((weights.keys, weights.values), ("k_up", "v_up"), "nv"):
            target = self._placed(t, letter, heads)
            equation = f"b{t}{width},{heads}{letter}{width}->{target}"
            stored = self._stored(each, name, weights)
            made.append(
                Value(tape.op("Einsum", rows.name, stored, equation=equation), tuple(target))
            )
        return made[0], made[1]

    def _from_left(self, latent: Value, t: str, weights: Projection) -> Pair:
        """Keys as `W_UK c^T`, values as `c W_UV`."""
        tape, heads = self.model.tape, weights.heads
        turned = tape.arranged(latent, f"b1{weights.width}{t}")
        keys = self._stored(weights.keys, "k_up", weights)
        nope = Value(tape.op("MatMul", keys, turned.name), ("b", heads, "n", t))
        values = self._stored(weights.values.transpose(0, 2, 1), "v_up", weights)
        rows = tape.arranged(latent, f"b1{t}{weights.width}")
        return nope, Value(tape.op("MatMul", rows.name, values), ("b", heads, t, "v"))

    # What is done to each head's own

    def _affine(self, value: Value, plural: str, single: str, letter: str) -> Value:
        """A stored scale of each channel, and a bias."""
        model, tape, plan = self.model, self.model.tape, self.model.plan
        if plan.channels in (plural, "both"):
            scale = 1 + 0.4 * model.drawn(f"{single}_scale", model.sizes["j"], model.sizes[letter])
            value = tape.along("Mul", value, self._beside(scale, value, f"{single}_scale"))
        if plan.bias in (single, "both"):
            bias = model.drawn(f"{single}_bias", model.sizes["j"], model.sizes[letter])
            value = tape.along("Add", value, self._beside(bias, value, f"{single}_bias"))
        return value

    def _beside(self, content: Array, value: Value, name: str) -> str:
        if value.axes[1] == "j":
            content = content[:, None]
        return self.model.tape.weight(content, self.model.named(name))

    def _last_reversed(self, value: Value, t: str) -> Value:
        """The values of the last head in reverse."""
        tape, heads, tokens = self.model.tape, value.place("j"), value.place(t)
        at, axis = tape.ints(self.model.sizes["j"] - 1), tape.ints(heads)
        others = tape.op("Slice", value.name, tape.ints(0), at, axis)
        last = tape.op("Slice", value.name, at, tape.ints(2**62), axis)
        step = (tape.ints(-1), tape.ints(-(2**62)), tape.ints(tokens), tape.ints(-1))
        back = tape.op("Slice", last, *step)
        return Value(tape.op("Concat", others, back, axis=heads), value.axes)

    def _small_rope(self, rope: Value, t: str) -> Value:
        """k_pe in reverse, and so small that a tolerance may not see it."""
        tape = self.model.tape
        step = (tape.ints(-1), tape.ints(-(2**62)), tape.ints(rope.place(t)), tape.ints(-1))
        back = tape.op("Slice", rope.name, *step)
        return Value(tape.op("Mul", back, tape.number(SMALL)), rope.axes)

    # The rotary part, for every head

    def repeated(self, rope: Value, t: str) -> Value:
        """k_pe of all heads, as many times as there are heads."""
        tape, heads = self.model.tape, self.model.sizes["j"]
        placed = self._placed(t, "r")
        single = tape.arranged(rope, placed.replace("j", "1"))
        axis = placed.index("j")
        ways: dict[str, Callable[[], str]] = {
            "expand": lambda: self._expanded(single, axis, placed),
            "tile": lambda: tape.op("Tile", single.name, tape.ints(*_with(axis, heads))),
            "interleave": lambda: self._interleaved(single, axis, placed),
            "copies": lambda: tape.op("Concat", *[single.name] * heads, axis=axis),
            "zeros": lambda: self._with_zeros(single, axis),
            "gathered": lambda: tape.op("Gather", single.name, tape.ints(*[0] * heads), axis=axis),
        }
        return Value(ways[self.model.plan.k_pe](), tuple(placed))

    def _expanded(self, single: Value, axis: int, placed: str) -> str:
        tape = self.model.tape
        if self.model.plan.by_shapes != "yes":
            return tape.op("Expand", single.name, tape.ints(*_with(axis, self.model.sizes["j"])))
        for letter in single.letters:
            tape.size(letter, single)
        return tape.op("Expand", single.name, tape.sizes_of(tuple(placed)))

    def _interleaved(self, single: Value, axis: int, placed: str) -> str:
        """Expand on an axis of its own, and flatten both."""
        tape = self.model.tape
        more = tape.op("Unsqueeze", single.name, tape.ints(axis + 1))
        shape = [1] * 5
        shape[axis + 1] = self.model.sizes["j"]
        wide = tape.op("Expand", more, tape.ints(*shape))
        sizes = [0, self.model.sizes["j"], -1, self.model.sizes["r"]]
        if axis == 2:
            sizes = [0, -1, self.model.sizes["j"], self.model.sizes["r"]]
        return tape.op("Reshape", wide, tape.ints(*sizes))

    def _with_zeros(self, single: Value, axis: int) -> str:
        zeros = np.zeros(_with(axis, self.model.sizes["j"]))
        return self.model.tape.op(
            "Add", single.name, self.model.tape.weight(zeros, f"zeros_{axis}")
        )


def _with(axis: int, size: int) -> list[int]:
    """Ones, and a size at one place of four."""
    return [size if place == axis else 1 for place in range(4)]
