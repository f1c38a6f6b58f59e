"""What operators on quantized activations stand for: one small rule a family of operators.

Of each operator, what its integers stand for, or the number that it turns back from integers
(:mod:`mla_opt.graphs.onnx.quantization.unrounding`). To have one more operator read, add its rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.quantization.unrounding import (
    MOVES,
    Grid,
    Rule,
    Rules,
    Unrounding,
    content_of,
)


def _input(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _axis(node: ir.Node, scale: ir.Value) -> tuple[int, int] | None:
    """Axis and block size, where there is more than one scale."""
    of_all = scale.shape is not None and scale.shape.rank() == 0
    if of_all or _maker(scale, "DynamicQuantizeLinear") is not None:
        return None
    content = content_of(scale)
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
RULES: Rules = {
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
