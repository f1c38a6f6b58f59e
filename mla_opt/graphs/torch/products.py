"""Products among aten's operators."""

from __future__ import annotations

from typing import Any, cast

from torch import fx

from mla_opt.graphs import contractions
from mla_opt.graphs import operations as op
from mla_opt.graphs.torch.lifted_program import symbolic_shape
from mla_opt.graphs.torch.reading import (
    OPAQUE,
    Facts,
    Reader,
    handle,
    operand,
    operator_name,
    rank_of,
    tensor_of,
)


def _linear(facts: Facts, node: fx.Node) -> op.Operation:
    data, weight = tensor_of(operand(node, 0)), tensor_of(operand(node, 1, "weight"))
    bias = operand(node, 2, "bias")
    if data is None or weight is None:
        return OPAQUE
    if not facts.is_constant(weight):
        return op.Opaque(product=True)
    if bias is not None and not (isinstance(bias, fx.Node) and facts.is_constant(bias)):
        return OPAQUE
    axes = contractions.matmul(rank_of(data), rank_of(weight), (False, True))
    return op.Linear(handle(data), handle(weight), bias is None, transposed=True, axes=axes)


def _matmul(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = tensor_of(operand(node, 0)), tensor_of(operand(node, 1, "other"))
    if left is None or right is None:
        return OPAQUE
    axes = contractions.matmul(rank_of(left), rank_of(right))
    if facts.is_constant(right):
        return op.Linear(handle(left), handle(right), plain=rank_of(right) == 2, axes=axes)
    if facts.is_constant(left):
        return op.Linear(handle(right), handle(left), axes=contractions.swapped(axes))
    return op.MatMul(handle(left), handle(right), axes)


def _baddbmm(facts: Facts, node: fx.Node) -> op.Operation:
    """``beta * input + alpha * batch1 @ batch2``."""
    addend, left, right = (tensor_of(operand(node, index)) for index in range(3))
    alpha, beta = (node.kwargs.get(name, 1) for name in ("alpha", "beta"))
    numbers = isinstance(alpha, (int, float)) and isinstance(beta, (int, float))
    if addend is None or left is None or right is None or not numbers:
        return OPAQUE
    if facts.is_constant(left) or facts.is_constant(right):
        return OPAQUE
    axes = contractions.matmul(rank_of(left), rank_of(right))
    alpha, beta = float(cast(float, alpha)), float(cast(float, beta))
    added = None if beta == 0.0 else handle(addend)
    return op.MatMul(handle(left), handle(right), axes, alpha, added, beta)


def _einsum(facts: Facts, node: fx.Node) -> op.Operation:
    """A product of two operands, as long as no letter is twice in one of them."""
    parts = [tensor_of(each) for each in operand(node, 1, "tensors") or ()]
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        return OPAQUE
    ranks = rank_of(parts[0]), rank_of(parts[1])
    axes = contractions.einsum(str(operand(node, 0, "equation")), ranks)
    return OPAQUE if axes is None else _product(facts, parts[0], parts[1], axes)


def _tensordot(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = tensor_of(operand(node, 0)), tensor_of(operand(node, 1, "other"))
    dims = operand(node, 2, "dims_self"), operand(node, 3, "dims_other")
    if left is None or right is None or None in dims:
        return OPAQUE
    ranks = rank_of(left), rank_of(right)
    first, second = ([axis % rank for axis in each] for each, rank in zip(dims, ranks))
    return _product(facts, left, right, contractions.tensordot(ranks, (first, second)))


def _product(
    facts: Facts, left: fx.Node, right: fx.Node, axes: op.Contraction
) -> op.Linear | op.MatMul:
    """A product by its labels: with a stored tensor, or of two that are computed."""
    if facts.is_constant(right):
        return op.Linear(handle(left), handle(right), axes=axes)
    if facts.is_constant(left):
        return op.Linear(handle(right), handle(left), axes=contractions.swapped(axes))
    return op.MatMul(handle(left), handle(right), axes)


def _convolution(facts: Facts, node: fx.Node) -> op.Operation:
    """One whose kernel has one place is a product with a matrix."""
    data, weight, bias = (tensor_of(operand(node, place)) for place in range(3))
    if data is None or weight is None or not facts.is_constant(weight):
        return OPAQUE
    usual = all(_is_all(operand(node, place, name), number) for place, name, number in _usual(node))
    shape = symbolic_shape(weight) or ()
    alone = len(shape) == rank_of(data) and all(size == 1 for size in shape[2:])
    if not usual or not alone or (bias is not None and not facts.is_constant(bias)):
        return OPAQUE
    axes = contractions.pointwise_convolution(len(shape))
    return op.Linear(handle(data), handle(weight), axes=axes)


def _usual(node: fx.Node) -> tuple[tuple[int, str, int], ...]:
    """Options of a convolution by place and name, and what they are where nothing is asked for."""
    first = ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    if operator_name(node) == "convolution":
        return (*first, (6, "transposed", 0), (7, "output_padding", 0), (8, "groups", 1))
    return (*first, (6, "groups", 1))


def _is_all(argument: Any, number: int) -> bool:
    """Whether an option is left out, or is a number along every axis."""
    given = argument if isinstance(argument, (list, tuple)) else [argument]
    return all(each is None or each == number for each in given)


def _addmm(facts: Facts, node: fx.Node) -> op.Operation:
    bias, data, weight = (tensor_of(operand(node, index)) for index in range(3))
    scaled = node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1
    if bias is None or data is None or weight is None or scaled:
        return OPAQUE
    if not facts.is_constant(bias) or not facts.is_constant(weight):
        return OPAQUE
    rows = symbolic_shape(bias)
    if rows is None or (len(rows) > 1 and rows[0] != 1):  # each row has a bias of its own
        return OPAQUE
    axes = contractions.matmul(rank_of(data), rank_of(weight))
    return op.Linear(handle(data), handle(weight), axes=axes)


READERS: dict[str, Reader] = {
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "baddbmm": _baddbmm,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "convolution": _convolution,
    "einsum": _einsum,
    "tensordot": _tensordot,
}
