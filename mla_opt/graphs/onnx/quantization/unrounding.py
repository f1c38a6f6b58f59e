"""The graph that quantized activations stand for, beside the one that rounds them.

Going through a graph in order, every value in integers is given the value in floating point that it
is the rounding of; where integers are turned back into numbers, that is what may be read instead::

    x --QuantizeLinear--> q --DequantizeLinear--> y                  y is x, rounded
    x --DynamicQuantizeLinear--> q --MatMulInteger--Cast--Mul--> y   y is x times the weight
    q --QLinearMatMul, QLinearAdd, Transpose, ... --> r --> y        y is the same done to numbers

Stored weights stay the numbers that they are stored as. A grid that cuts off one sign leaves a Relu
where the value may have it; other numbers off the grid's ends are no longer cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mla_opt.graphs.onnx.quantization.signs import never_negative, never_positive
from mla_opt.graphs.onnx.stored import StoredOnly
from mla_opt.handles import Array


@dataclass(frozen=True, slots=True)
class Grid:
    """What integers are multiplied by, and which of them is zero; ``axis`` where it has several."""

    scale: ir.Value
    zero: ir.Value | None
    axis: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Unrounded:
    """A number that is turned back from integers, and what it is without their roundings."""

    rounded: ir.Value
    real: ir.Value


class Unrounding:
    """Goes through a graph and its branches in order, and adds to them."""

    def __init__(self, rules: Rules, names: Iterable[str | None]) -> None:
        self._rules = rules
        self._names = set(names)
        self._stored = StoredOnly()
        self._reals: dict[ir.Value, tuple[ir.Value, Grid]] = {}
        self._place: ir.Node | None = None
        self._made: list[ir.Node] = []

    def visit(self, node: ir.Node) -> Unrounded | None:
        """Go on to the next node; returns what it turns back into numbers, if it does."""
        rule = self._rules.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
        if rule is None:
            return None
        self._place = node
        real = rule(self, node)
        return None if real is None else Unrounded(node.outputs[0], real)

    @property
    def made(self) -> Sequence[ir.Node]:
        """All nodes that were made, those included that nothing came to need."""
        return self._made

    # What is known of integers

    def know(self, integers: ir.Value, real: ir.Value, grid: Grid, kind: ir.DataType) -> None:
        """Note what integers of a grid stand for, as far as they can."""
        settled = real if _is_only_weighed(integers) else self._saturated(real, grid, kind)
        if settled is not None:
            self._reals[integers] = settled, grid

    def real(self, integers: ir.Value | None, grid: Grid) -> ir.Value | None:
        """The number that integers stand for on a grid, where they are a rounded activation."""
        known = None if integers is None else self._reals.get(integers)
        if known is None or not self._same_grid(known[1], grid):
            return None
        return known[0]

    def grid_of(self, integers: ir.Value | None) -> Grid | None:
        """The grid of a rounded activation."""
        known = None if integers is None else self._reals.get(integers)
        return None if known is None else known[1]

    def number(self, integers: ir.Value | None, grid: Grid, width: bool = False) -> ir.Value | None:
        """Like `real`, and for stored integers what they dequantize to.

        ``width``: they may have one scale for every place of their last axis.
        """
        known = self.real(integers, grid)
        if known is not None or integers is None or not self._is_stored(integers, grid):
            return known
        return self._dequantized(integers, grid, width)

    def is_computed(self, value: ir.Value | None) -> bool:
        """Whether a value depends on an input of the model."""
        return value is not None and not self._stored(value)

    def _is_stored(self, integers: ir.Value, grid: Grid) -> bool:
        values = (integers, grid.scale, *(() if grid.zero is None else (grid.zero,)))
        return all(map(self._stored, values))

    def _same_grid(self, one: Grid, other: Grid) -> bool:
        if one.axis != other.axis:
            return False
        return _same(one.scale, other.scale) and _same_zero(one.zero, other.zero)

    def _saturated(self, real: ir.Value, grid: Grid, kind: ir.DataType) -> ir.Value | None:
        """The number without the sign that the grid has no place for; ``None``: it varies."""
        if not kind.is_integer() or self.is_computed(grid.zero):
            return real
        zero = np.zeros(1) if grid.zero is None else content_of(grid.zero)
        if zero is None:
            return None
        low, high = _range(kind)
        at_low, at_high = zero <= low, zero >= high
        if at_low.all():
            return real if never_negative(real) else self.emit("Relu", real)
        if at_high.all():
            negative = (
                self.emit("Relu", self.emit("Neg", real)) if not never_positive(real) else None
            )
            return real if negative is None else self.emit("Neg", negative)
        return None if at_low.any() or at_high.any() else real

    # Emission

    def emit(
        self, kind: str, *inputs: ir.Value | None, attributes: Sequence[ir.Attr] = ()
    ) -> ir.Value:
        """Put a standard operator in front of the node that is being visited."""
        return self.emit_all(kind, inputs, attributes)[0]

    def emit_all(
        self,
        kind: str,
        inputs: Sequence[ir.Value | None],
        attributes: Iterable[ir.Attr] = (),
        like: Sequence[ir.Value] = (),
    ) -> Sequence[ir.Value]:
        """The same for one with as many outputs as ``like``, which they are as large as."""
        assert self._place is not None
        name = self._new_name(f"{self._place.outputs[0].name}/unrounded")
        count = max(len(like), 1)
        node = ir.Node("", kind, inputs, [*attributes], num_outputs=count, name=name)
        for place, output in enumerate(node.outputs):
            output.name = f"{name}.{place}" if place else name
        self._made.append(node)
        owner = self._place.graph
        assert owner is not None
        owner.insert_before(self._place, node)
        return node.outputs

    def _new_name(self, wanted: str) -> str:
        name, count = wanted, 0
        while name in self._names:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name

    def constant(self, array: Array) -> ir.Value:
        """A stored tensor."""
        return self.emit("Constant", attributes=[ir.AttrTensor("value", ir.Tensor(array))])

    def _dequantized(self, integers: ir.Value, grid: Grid, width: bool) -> ir.Value | None:
        scale = content_of(grid.scale)
        zero = None if grid.zero is None else content_of(grid.zero)
        rank = None if integers.shape is None else integers.shape.rank()
        if scale is None or (grid.zero is not None and zero is None):
            return None
        sizes = {each.size for each in (scale, zero) if each is not None} - {1}
        if not sizes:
            shape: tuple[int, ...] = ()
        elif len(sizes) == 1 and width and rank:
            shape = (sizes.pop(),)
        else:
            return None
        parts = [
            self.constant(
                np.broadcast_to(each.reshape(-1) if shape else each.reshape(()), shape).copy()
            )
            for each in (scale, zero)
            if each is not None
        ]
        axis = [ir.AttrInt64("axis", (rank or 1) - 1)] if shape else []
        return self.emit("DequantizeLinear", integers, *parts, attributes=axis)


MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
    | {"Tile", "Transpose", "Unsqueeze"}
)
"""Operators that put elements in another order, and do nothing else to them."""

Rule = Callable[[Unrounding, ir.Node], ir.Value | None]
"""Notes what the integers of a node stand for, or returns the number that it turns back."""

Rules = Mapping[tuple[str, str], Rule]
"""By domain and operator."""


def _is_only_weighed(integers: ir.Value) -> bool:
    """Whether all that becomes of integers is a softmax.

    Scores that a mask has been added to are on a grid as wide as the mask's numbers, whose zero is
    at its end: that cuts off no sign, but is how coarse the grid is.
    """
    readers = [
        reader
        for node in integers.consumers()
        for reader in (
            node.outputs[0].consumers() if node.op_type == "DequantizeLinear" else [node]
        )
    ]
    return bool(readers) and all(
        reader.op_type in ("Softmax", "QLinearSoftmax") for reader in readers
    )


def _range(kind: ir.DataType) -> tuple[int, int]:
    count = 1 << int(kind.bitwidth)
    return (-(count // 2), count // 2 - 1) if kind.is_signed() else (0, count - 1)


def content_of(value: ir.Value) -> Array | None:
    """A stored tensor's content; ``None`` for what is computed."""
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def _same(one: ir.Value, other: ir.Value) -> bool:
    if one is other:
        return True
    contents = content_of(one), content_of(other)
    if contents[0] is None or contents[1] is None or contents[0].size != contents[1].size:
        return False
    return bool(np.array_equal(contents[0].reshape(-1), contents[1].reshape(-1)))


def _same_zero(one: ir.Value | None, other: ir.Value | None) -> bool:
    if one is not None and other is not None:
        return _same(one, other)
    given = one if other is None else other
    content = None if given is None else content_of(given)
    return given is None or (content is not None and not content.astype(np.float64).any())
