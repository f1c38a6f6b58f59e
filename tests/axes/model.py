"""What all steps of the writer share: the plan, its sizes, weights by name, and the mutations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.axes import mutations
from tests.axes.feeding import Array
from tests.axes.plan import SIZES, Plan
from tests.axes.tape import Axes, Tape, Value

CAPACITY = 1203
TABLE = 2003
"""Rows of buffers and of rotary tables."""

CACHED = {
    "latent": {
        "heads": "b1t{}",
        "tokens": "bt{}",
        "turned": "b{}t",
        "flat": "bt1{}",
        "first": "tb{}",
    },
    "expanded": {
        "heads": "bjt{}",
        "tokens": "btj{}",
        "turned": "bj{}t",
        "flat": "bt(j{})",
        "first": "tbj{}",
    },
}
"""Axes of a cache, by what is cached and the plan's word; the width comes in."""

DTYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64}


@dataclass
class Rows:
    """Rows that keys and values are made of, `b`, `s` or `t`, and their width.

    ``second`` is the latent of the second group of heads, where it has one of its own.
    """

    latent: Value
    rope: Value | None
    second: Value | None = None


@dataclass
class Model:
    """A plan on its tape.

    ``kept`` is what a second layer shares with the first, ``key`` the keys as attention takes them.
    """

    plan: Plan
    layer: int = 0
    kept: Any = None
    key: Value | None = None
    tape: Tape = field(init=False)
    sizes: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        self.sizes = sizes(plan)
        self.tape = Tape(
            self.sizes,
            np.dtype(DTYPES[plan.dtype]),
            int(plan.opset),
            plan.by_shapes == "yes",
            plan.seed,
        )

    @property
    def has_rotary(self) -> bool:
        return self.plan.rotary != "none"

    def named(self, name: str) -> str:
        """The name of a weight of this layer."""
        return f"model.layers.{self.layer}.self_attn.{name}.weight"

    def drawn(self, name: str, *shape: int, fan_in: int | None = None) -> Array:
        """Numbers of a weight of this layer."""
        return self.tape.drawn(self.named(name), *shape, fan_in=fan_in)

    def times(self, value: Value, weight: Array, name: str, letter: str) -> Value:
        """``value @ weight``; its last axis becomes ``letter``."""
        stored = self.tape.weight(weight, self.named(name))
        return Value(self.tape.op("MatMul", value.name, stored), (*value.axes[:-1], letter))

    def as_keys(self, value: Value) -> Value:
        """New tokens as the keys in sight, where there is no cache."""
        return Value(value.name, tuple(axis.replace("s", "t") for axis in value.axes))

    def shape(self, held: Axes, tokens: str) -> list[int | str]:
        """The shape of an input or output."""
        names: dict[str, int | str] = {"b": "B", "s": "S", "t": tokens, **self.sizes}
        return [self.tape.number_of(axis) or names[axis] for axis in held]

    def at(self, point: str, value: Value) -> Value:
        """A value with the mutations that are at this point of the first layer."""
        for mutation in self.plan.mutations if self.layer == 0 else ():
            if mutation.startswith(f"{point} "):
                value = mutations.applied(self.tape, value, mutation)
        return value

    def returned(self, point: str, value: Value) -> None:
        """Sums over the last axis as an output of the model, where a mutation asks for it."""
        if self.mutated(f"{point}_returned"):
            tape = self.tape
            total = tape.op("ReduceSum", value.name, tape.ints(-1), keepdims=0)
            tokens = "S" if self.plan.cache == "none" else "T"
            tape.output(total, f"sum_of_{point}", self.shape(value.axes[:-1], tokens))

    def mutated(self, kind: str) -> bool:
        """Whether a mutation of the whole model is asked for."""
        return self.layer == 0 and f"model - {kind} 0" in self.plan.mutations


def sizes(plan: Plan) -> dict[str, int]:
    """Sizes of all axes that are numbers, by letter."""
    heads, nope, rope, value, latent, hidden = SIZES[plan.size]
    rope = 0 if plan.rotary == "none" else rope
    shared = 2 if plan.repeat == "two" else 1
    groups = heads if plan.groups == "each" else 2
    found = {
        "j": heads,
        "h": heads * shared,
        "i": shared,
        "n": nope,
        "r": rope,
        "k": nope + rope,
        "v": value,
        "x": nope + value,
        "z": value + 3,
        "c": latent,
        "l": latent + rope,
        "e": hidden,
        "q": 6,
        "f": rope // 2,
        "g": groups,
        "d": latent // groups,
        "m": heads // groups,
    }
    if plan.rotary == "none":
        found["k"] = nope
    if plan.static:
        found["t"] = CAPACITY
    return {letter: size for letter, size in found.items() if size}
