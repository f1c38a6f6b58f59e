"""Write an ONNX graph in terms of named axes: `tape.arranged(value, "bhtk")` puts in the nodes.

An axis is a letter; several letters are axes flattened into one, and "1" is an axis of size one:

    b sequences   s new tokens   t keys in sight   h heads   j heads of keys and values   g groups
    e hidden      c latent       r rotary part     n the rest of a key   k whole key   v value
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.axes.feeding import Array

Axes = tuple[str, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the graph, by its name and what its axes are."""

    name: str
    axes: Axes

    def place(self, letter: str) -> int:
        """Where an axis is; raises ValueError where it is not an axis of its own."""
        return self.axes.index(letter)

    @property
    def letters(self) -> str:
        """The axes of size other than one, taken apart."""
        return "".join(axis for axis in self.axes if axis != "1")


def axes(text: str) -> Axes:
    """`"b1s(hk)"` as axes."""
    found, rest = [], text
    while rest:
        if rest[0] == "(":
            end = rest.index(")")
            found.append(rest[1:end])
            rest = rest[end + 1 :]
        else:
            found.append(rest[0])
            rest = rest[1:]
    return tuple(found)


@dataclass
class Tape:
    """A graph that is being written.

    Attributes:
        sizes: of the axes whose size is a number.
        dtype: of the activations and weights.
        opset: what the operators are those of.
        by_shapes: sizes in a Reshape come from Shape nodes, not as 0 and -1.
        seed: of the weights, which go by name.
    """

    sizes: Mapping[str, int]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype(np.float32))
    opset: int = 18
    by_shapes: bool = False
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: dict[str, onnx.TensorProto] = field(default_factory=dict)
    inputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    outputs: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    known: dict[str, str] = field(default_factory=dict)
    domains: set[str] = field(default_factory=set)
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict)
    count: int = 0

    # Nodes and what they read

    def fresh(self, stem: str) -> str:
        """A name that no value has."""
        self.count += 1
        return f"{stem.lower()}_{self.count}"

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node of one output."""
        return self.many(kind, 1, *inputs, out=out, **attributes)[0]

    def many(
        self,
        kind: str,
        count: int,
        *inputs: str,
        out: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Append a node of several outputs; the first may be named."""
        outs = [out or self.fresh(kind), *(self.fresh(kind) for _ in range(count - 1))]
        node = helper.make_node(
            kind, inputs, outs, self.fresh(f"node_{kind}"), domain=domain, **attributes
        )
        self.nodes.append(node)
        self.domains.add(domain)
        return outs

    def array(self, content: Any, name: str | None = None) -> str:
        """Store a tensor; equal ones without a name of their own are stored once."""
        array = np.asarray(content, order="C")
        if name is None:
            digest = zlib.crc32(array.tobytes())
            name = f"stored_{array.dtype}_{'x'.join(map(str, array.shape))}_{digest:08x}"
        if name not in self.stored:
            self.stored[name] = numpy_helper.from_array(array, name)
        return name

    def ints(self, *numbers: int) -> str:
        """A list of whole numbers."""
        return self.array(np.array(numbers, np.int64))

    def whole(self, number: int) -> str:
        """One whole number, without an axis."""
        return self.array(np.array(number, np.int64))

    def number(self, number: float, dtype: Any = None) -> str:
        """One number of the activations' type."""
        return self.array(np.array(number, dtype or self.dtype))

    def drawn(self, name: str, *shape: int, fan_in: int | None = None) -> Array:
        """Random numbers, the same for a name wherever it is drawn; each scaled by fan in."""
        rng = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        return rng.standard_normal(shape) / math.sqrt(fan_in or 1)

    def weight(self, content: Array, name: str) -> str:
        """Store numbers in the model's type."""
        return self.array(content.astype(self.dtype), name)

    def input(self, name: str, shape: Sequence[int | str], kind: int | None = None) -> str:
        """Declare an input, once."""
        kind = kind or helper.np_dtype_to_tensor_dtype(self.dtype)
        self.inputs.setdefault(name, helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, shape: Sequence[int | str]) -> str:
        """Make a value an output by the name it is to have."""
        named = self.op("Identity", value, out=name)
        return self.declare(named, shape)

    def declare(self, name: str, shape: Sequence[int | str]) -> str:
        """Make a value that has its name already an output."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.outputs[name] = helper.make_tensor_value_info(name, kind, shape)
        return name

    # Axes

    def size(self, letter: str, source: Value | None = None) -> str:
        """The size of an axis as a list of one number."""
        if letter in self.sizes:
            return self.ints(self.sizes[letter])
        if letter not in self.known:
            assert source is not None, letter
            self.known[letter] = self.size_at(source.name, source.place(letter))
        return self.known[letter]

    def size_at(self, value: str, place: int) -> str:
        """The size of one dim, read off the value."""
        if self.by_shapes:
            return self.op("Gather", self.op("Shape", value), self.ints(place), axis=0)
        return self.op("Shape", value, start=place, end=place + 1)

    def number_of(self, axis: str) -> int | None:
        """The size of an axis, where it is a number."""
        if axis == "1":
            return 1
        if all(letter in self.sizes for letter in axis):
            return math.prod(self.sizes[letter] for letter in axis)
        return None

    def arranged(self, value: Value, target: str | Axes) -> Value:
        """The same content with its axes as in ``target``."""
        wanted = axes(target) if isinstance(target, str) else target
        if value.axes == wanted:
            return value
        flat = "".join(axis for axis in wanted if axis != "1")
        assert sorted(value.letters) == sorted(flat), f"{value.axes} to {wanted}"
        if value.letters != flat:
            value = self._transposed(self.split(value), flat)
        return self._shaped(value, wanted)

    def split(self, value: Value) -> Value:
        """Every letter an axis of its own."""
        return self._shaped(value, tuple(value.letters))

    def _transposed(self, value: Value, order: str) -> Value:
        perm = [value.place(letter) for letter in order]
        return Value(self.op("Transpose", value.name, perm=perm), tuple(order))

    def _shaped(self, value: Value, wanted: Axes) -> Value:
        """Merge, split, add and drop axes without moving any."""
        if value.axes == wanted:
            return value
        if [axis for axis in value.axes if axis != "1"] == [axis for axis in wanted if axis != "1"]:
            return self._ones(value, wanted)
        for letter in value.letters:  # what is merged cannot be told apart later
            if letter not in self.sizes and letter in value.axes and letter not in wanted:
                self.size(letter, value)
        return Value(self.op("Reshape", value.name, self._shape(value, wanted)), wanted)

    def _ones(self, value: Value, wanted: Axes) -> Value:
        """Drop and add axes of size one."""
        name = value.name
        drop = [place for place, axis in enumerate(value.axes) if axis == "1"]
        add = [place for place, axis in enumerate(wanted) if axis == "1"]
        if drop:
            name = self.op("Squeeze", name, self.ints(*drop))
        if add:
            name = self.op("Unsqueeze", name, self.ints(*add))
        return Value(name, wanted)

    def _shape(self, value: Value, wanted: Axes) -> str:
        numbers = self._numbers(value, wanted)
        if numbers is not None and not self.by_shapes:
            return self.ints(*numbers)
        for letter in value.letters:
            if letter not in self.sizes and letter not in self.known:
                self.size(letter, value)
        return self.sizes_of(wanted)

    def _numbers(self, value: Value, wanted: Axes) -> list[int] | None:
        """The target shape in 0 and -1, if they are enough."""
        numbers: list[int] = []
        for place, axis in enumerate(wanted):
            size = self.number_of(axis)
            if size is None:
                same = value.axes[: place + 1] == wanted[: place + 1]
                size = 0 if same else -1
            numbers.append(size)
        return numbers if numbers.count(-1) <= 1 else None

    def sizes_of(self, wanted: Axes) -> str:
        """A shape as one list, of what is known of each axis."""
        parts = [self._axis_size(axis) for axis in wanted]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def _axis_size(self, axis: str) -> str:
        if axis == "1":
            return self.ints(1)
        size = self.size(axis[0])
        for letter in axis[1:]:
            size = self.op("Mul", size, self.size(letter))
        return size

    # Pieces that everything uses

    def along(self, kind: str, value: Value, *others: str, **attributes: Any) -> Value:
        """An operator that keeps the axes."""
        return Value(self.op(kind, value.name, *others, **attributes), value.axes)

    def parts(self, value: Value, letter: str, names: str) -> list[Value]:
        """Cut an axis into axes by their letters."""
        place = value.place(letter)
        sizes = self.ints(*(self.sizes[name] for name in names))
        outs = self.many("Split", len(names), value.name, sizes, axis=place)
        return [
            Value(out, (*value.axes[:place], name, *value.axes[place + 1 :]))
            for out, name in zip(outs, names)
        ]

    def joined(self, values: Sequence[Value], letters: Sequence[str], joint: str) -> Value:
        """Put parts of an axis one behind the other."""
        place = values[0].place(letters[0])
        name = self.op("Concat", *(each.name for each in values), axis=place)
        whole = values[0].axes
        return Value(name, (*whole[:place], joint, *whole[place + 1 :]))

    def reduced(self, kind: str, value: str, axis: int) -> str:
        """A reduction that keeps its axis."""
        if self.opset < 18 and kind != "ReduceSum":
            return self.op(kind, value, axes=[axis], keepdims=1)
        return self.op(kind, value, self.ints(axis), keepdims=1)

    def cast(self, value: str, dtype: Any) -> str:
        """A cast to a type of NumPy."""
        return self.op("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def model(self) -> onnx.ModelProto:
        """The graph as a model."""
        graph = helper.make_graph(
            self.nodes,
            "drawn",
            list(self.inputs.values()),
            list(self.outputs.values()),
            list(self.stored.values()),
        )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in sorted(self.domains - {""})]
        return helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=10,
            functions=list(self.functions.values()),
        )


__all__ = ["Axes", "Tape", "TensorProto", "Value", "axes"]
