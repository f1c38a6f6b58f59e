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

from collections.abc import Callable, Iterable, Sequence
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

    def __init__(self, names: Iterable[str | None] = ()) -> None:
        self._names = set(names)
        self._stored = StoredOnly()
        self._reals: dict[ir.Value, tuple[ir.Value, Grid]] = {}
        self._place: ir.Node | None = None
        self._made: list[ir.Node] = []

    def visit(self, node: ir.Node) -> Unrounded | None:
        """Go on to the next node; returns what it turns back into numbers, if it does."""
        rule = _RULES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
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
        zero = np.zeros(1) if grid.zero is None else _content(grid.zero)
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
        scale = _content(grid.scale)
        zero = None if grid.zero is None else _content(grid.zero)
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


def _content(value: ir.Value) -> Array | None:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def _same(one: ir.Value, other: ir.Value) -> bool:
    if one is other:
        return True
    contents = _content(one), _content(other)
    if contents[0] is None or contents[1] is None or contents[0].size != contents[1].size:
        return False
    return bool(np.array_equal(contents[0].reshape(-1), contents[1].reshape(-1)))


def _same_zero(one: ir.Value | None, other: ir.Value | None) -> bool:
    if one is not None and other is not None:
        return _same(one, other)
    given = one if other is None else other
    content = None if given is None else _content(given)
    return given is None or (content is not None and not content.astype(np.float64).any())


# Rules: of each operator, what its integers stand for, or the number it turns back


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _axis(node: ir.Node, scale: ir.Value) -> tuple[int, int] | None:
    """Axis and block size, where there is more than one scale."""
    of_all = scale.shape is not None and scale.shape.rank() == 0
    if of_all or _maker(scale, "DynamicQuantizeLinear") is not None:
        return None
    content = _content(scale)
    if content is not None and content.size == 1:
        return None
    sizes = (node.attributes.get(name) for name in ("axis", "block_size"))
    axis, block = (None if each is None else each.as_int() for each in sizes)
    return (1 if axis is None else axis, block or 0)


def _quantize(state: Unrounding, node: ir.Node) -> None:
    real, scale, zero = (_input(node, place) for place in range(3))
    if real is None or scale is None or not state.is_computed(real):
        return
    kind = ir.DataType.UINT8 if zero is None else zero.dtype
    stated = node.attributes.get("output_dtype")
    if zero is None and stated is not None and stated.as_int():
        kind = ir.DataType(stated.as_int())
    if kind is not None:
        state.know(node.outputs[0], real, Grid(scale, zero, _axis(node, scale)), kind)


def _quantize_dynamically(state: Unrounding, node: ir.Node) -> None:
    """Its grid reaches from the least number to the largest: nothing is cut off."""
    real = node.inputs[0]
    if real is not None and state.is_computed(real):
        grid = Grid(node.outputs[1], node.outputs[2])
        state.know(node.outputs[0], real, grid, ir.DataType.FLOAT)


def _dequantize(state: Unrounding, node: ir.Node) -> ir.Value | None:
    scale = _input(node, 1)
    if scale is None:
        return None
    return state.real(_input(node, 0), Grid(scale, _input(node, 2), _axis(node, scale)))


def _move(state: Unrounding, node: ir.Node) -> None:
    """Integers in another order: the numbers in the same."""
    data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    grids = [state.grid_of(value) for value in data]
    grid = grids[0] if grids else None
    if grid is None or grid.axis is not None:
        return
    reals = [state.real(value, grid) for value in data]
    if any(real is None for real in reals):
        return
    rest = node.inputs[len(data) :]
    moved = state.emit_all(node.op_type, (*reals, *rest), node.attributes.values(), node.outputs)
    for integers, real in zip(node.outputs, moved):
        state.know(integers, real, grid, ir.DataType.FLOAT)


def _product_of_integers(state: Unrounding, node: ir.Node) -> ir.Value | None:
    """``Mul(Cast(MatMulInteger), scale)``."""
    for place in (0, 1):
        cast, scale = node.inputs[place], node.inputs[1 - place]
        product = _maker(_input(cast_node, 0)) if (cast_node := _maker(cast, "Cast")) else None
        if scale is not None and product is not None and product.op_type in _INTEGER_PRODUCTS:
            return _product(state, product, scale)
    return None


_INTEGER_PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}


def _maker(value: ir.Value | None, kind: str | None = None) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and kind in (None, node.op_type) else None


def _product(state: Unrounding, node: ir.Node, scale: ir.Value) -> ir.Value | None:
    """A product of integers whose scales are the factors of ``scale``, in any order."""
    factors = _maker(scale, "Mul")
    if factors is None or None in factors.inputs:
        return None
    one, other = factors.inputs
    is_matrix = node.op_type == "MatMulInteger"
    for of_left, of_right in ((one, other), (other, one)):
        if of_left is None or of_right is None:
            continue
        left = state.number(_input(node, 0), Grid(of_left, _input(node, 2)))
        right = None
        if left is not None:
            right = state.number(_input(node, 1), Grid(of_right, _input(node, 3)), is_matrix)
        if left is not None and right is not None:
            kind = _INTEGER_PRODUCTS[node.op_type]
            return state.emit(kind, left, right, attributes=list(node.attributes.values()))
    return None


def _dynamic_matmul(state: Unrounding, node: ir.Node) -> ir.Value | None:
    """ONNX Runtime's DynamicQuantizeMatMul: of numbers and a stored matrix, maybe with a bias."""
    real, weight, scale, zero, bias = (_input(node, place) for place in range(5))
    if real is None or scale is None:
        return None
    matrix = state.number(weight, Grid(scale, zero), width=True)
    return None if matrix is None else _with_bias(state, state.emit("MatMul", real, matrix), bias)


def _integer_matmul_to_float(state: Unrounding, node: ir.Node) -> ir.Value | None:
    left, right, of_left, of_right, zero_left, zero_right, bias = (
        _input(node, place) for place in range(7)
    )
    if of_left is None or of_right is None:
        return None
    first = state.number(left, Grid(of_left, zero_left))
    second = state.number(right, Grid(of_right, zero_right), width=True)
    if first is None or second is None:
        return None
    return _with_bias(state, state.emit("MatMul", first, second), bias)


def _with_bias(state: Unrounding, product: ir.Value, bias: ir.Value | None) -> ir.Value:
    return product if bias is None else state.emit("Add", product, bias)


def _operands(
    state: Unrounding, node: ir.Node, places: Sequence[int], width: bool = False
) -> list[ir.Value] | None:
    """The numbers of operands that have scale and zero point behind each of them."""
    found = []
    for place in places:
        scale = _input(node, place + 1)
        if scale is None:
            return None
        grid = Grid(scale, _input(node, place + 2))
        number = state.number(_input(node, place), grid, width and place == places[-1])
        if number is None:
            return None
        found.append(number)
    return found


def _done_to_numbers(
    kind: str, places: Sequence[int], result: int, kept: Sequence[str] = ()
) -> Rule:
    """An operator on integers: the same on numbers; its own grid is at ``result``."""

    def rule(state: Unrounding, node: ir.Node) -> None:
        used = range(2, len(node.inputs), 3) if kind == "Concat" else places
        numbers = _operands(state, node, list(used), kind == "MatMul")
        scale, zero = _input(node, result), _input(node, result + 1)
        computed = any(state.is_computed(_input(node, place)) for place in used)
        if numbers is None or scale is None or not computed:
            return
        if kind == "Where":
            numbers.insert(0, node.inputs[0])  # type: ignore[arg-type]
        attributes = [node.attributes[name] for name in kept if name in node.attributes]
        real = state.emit(kind, *numbers, attributes=attributes)
        type_of_zero = ir.DataType.UINT8 if zero is None else zero.dtype
        if type_of_zero is not None:
            state.know(node.outputs[0], real, Grid(scale, zero), type_of_zero)

    return rule


_MICROSOFT = "com.microsoft"
_RULES: dict[tuple[str, str], Rule] = {
    **{
        (domain, kind): rule
        for domain in ("", _MICROSOFT)
        for kind, rule in (("QuantizeLinear", _quantize), ("DequantizeLinear", _dequantize))
    },
    ("", "DynamicQuantizeLinear"): _quantize_dynamically,
    **{("", kind): _move for kind in MOVES},
    ("", "Mul"): _product_of_integers,
    (_MICROSOFT, "DynamicQuantizeMatMul"): _dynamic_matmul,
    (_MICROSOFT, "MatMulIntegerToFloat"): _integer_matmul_to_float,
    ("", "QLinearMatMul"): _done_to_numbers("MatMul", (0, 3), 6),
    (_MICROSOFT, "QLinearAdd"): _done_to_numbers("Add", (0, 3), 6),
    (_MICROSOFT, "QLinearMul"): _done_to_numbers("Mul", (0, 3), 6),
    (_MICROSOFT, "QLinearSigmoid"): _done_to_numbers("Sigmoid", (0,), 3),
    (_MICROSOFT, "QLinearSoftmax"): _done_to_numbers("Softmax", (0,), 3, ("axis",)),
    (_MICROSOFT, "QLinearConcat"): _done_to_numbers("Concat", (), 0, ("axis",)),
    (_MICROSOFT, "QLinearWhere"): _done_to_numbers("Where", (1, 4), 7),
}
