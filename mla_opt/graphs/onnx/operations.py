"""What each ONNX operator means, in the vocabulary of :mod:`mla_opt.graphs.operations`.

One small function per operator family, found by ``(domain, op_type)``. A node with an attribute or
a form that its function does not know is :class:`~mla_opt.graphs.operations.Opaque`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mla_opt.graphs import contractions, sizes
from mla_opt.graphs import operations as op
from mla_opt.graphs.onnx import attentions, gathered, moves, numbers, reductions
from mla_opt.graphs.onnx.quantization.operators import is_quantization
from mla_opt.graphs.onnx.reading import OPAQUE, Facts, Reader, attribute, operand
from mla_opt.graphs.onnx.reductions import from_end


def read(facts: Facts, node: ir.Node) -> op.Operation:
    """Translate one node; :class:`Opaque` when nothing is known of it."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    reader = READERS.get((domain, node.op_type))
    if reader is None:
        whole = node.op_type == "QAttention"
        return op.Opaque(rounds=is_quantization(node.op_type), attention=whole)
    return reader(facts, node)


def _scalar(facts: Facts, value: ir.Value | None) -> float | None:
    """The number a value holds, if it is one element, computed from stored tensors or sizes."""
    if value is None:
        return None
    array = facts.small_constant(value)
    if array is not None:
        return float(array.reshape(-1)[0]) if array.size == 1 else None
    known = numbers.computed(facts, value)
    return facts.stored_number(value) if known is None else known


def _layout(facts: Facts, node: ir.Node, *data: ir.Value, axis: int | None = None) -> op.Layout:
    """A layout operator, with what it does to axes."""
    move = moves.move_of(facts, node)
    if isinstance(move, str):
        return op.Layout(data, axis, None, move)
    return op.Layout(data, axis, move)


def _first_operand_layout(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    return OPAQUE if data is None else _layout(facts, node, data)


def _dropout(facts: Facts, node: ir.Node) -> op.Operation:
    """Nothing in inference; in training it drops numbers at random."""
    trains = operand(node, 2)
    if trains is None:
        return _first_operand_layout(facts, node)
    content = facts.small_constant(trains)
    idle = content is not None and not content.any()
    return _first_operand_layout(facts, node) if idle else OPAQUE


def _pad(facts: Facts, node: ir.Node) -> op.Operation:
    fill = operand(node, 2)
    mode = node.attributes.get("mode")
    zero = fill is None or _scalar(facts, fill) == 0.0
    plain = mode is None or mode.value == "constant"
    return _first_operand_layout(facts, node) if zero and plain else OPAQUE


def _concat(facts: Facts, node: ir.Node) -> op.Operation:
    parts = tuple(value for value in node.inputs if value is not None)
    axis = int(attribute(node, "axis", 0))
    rank = facts.rank(node.outputs[0])
    if axis >= 0:
        axis = axis - rank if rank is not None else axis
    return _layout(facts, node, *parts, axis=axis)


def _scatter(facts: Facts, node: ir.Node) -> op.Operation:
    reduction = node.attributes.get("reduction")
    if reduction is not None and reduction.value != "none":
        return OPAQUE
    data, updates = operand(node, 0), operand(node, 2)
    return OPAQUE if data is None or updates is None else _layout(facts, node, data, updates)


def _tensor_scatter(facts: Facts, node: ir.Node) -> op.Operation:
    data, rows = operand(node, 0), operand(node, 1)
    return OPAQUE if data is None or rows is None else _layout(facts, node, data, rows)


def _expand(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    return OPAQUE if data is None else op.Broadcast(data)


def _tile(facts: Facts, node: ir.Node) -> op.Operation:
    """Repeats whole axes; those whose size varies may not be among them."""
    data, after = operand(node, 0), facts.shape(node.outputs[0])
    before = None if data is None else facts.shape(data)
    if data is None:
        return OPAQUE
    pairs = () if before is None or after is None else tuple(zip(before, after))
    if pairs and all(isinstance(size, int) or sizes.same(size, made) for size, made in pairs):
        return op.Broadcast(data)
    return op.Layout((data,), None, None, "it repeats an axis whose size varies")


def _filled(facts: Facts, node: ir.Node) -> op.Operation:
    value = node.attributes.get("value")
    if value is None:
        return op.Filled(0.0)
    tensor = value.as_tensor() if value.type == ir.AttributeType.TENSOR else None
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
        return op.Filled()
    return op.Filled(float(np.asarray(tensor.numpy()).reshape(-1)[0]))


def _cast(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    if data is None:
        return OPAQUE
    target = ir.DataType(int(attribute(node, "to", 1)))
    floating = target.is_floating_point() and (data.dtype is None or data.dtype.is_floating_point())
    return op.Cast(data) if floating else OPAQUE


def _multiply(facts: Facts, node: ir.Node) -> op.Operation:
    left, right = operand(node, 0), operand(node, 1)
    for data, other in ((left, right), (right, left)):
        divisor = _inverted(other)
        if data is not None and divisor is not None:
            return _by(facts, data, divisor)
    for data, factor in ((left, _scalar(facts, right)), (right, _scalar(facts, left))):
        if factor is not None and data is not None:
            return op.Scaled(data, factor)
    for data, other in ((left, right), (right, left)):
        if data is not None and other is not None and facts.is_constant(other):
            return op.ScaledBy(data, other)
    return OPAQUE


def _inverted(value: ir.Value | None) -> ir.Value | None:
    """What a value is one by."""
    node = None if value is None else value.producer()
    inverts = node is not None and node.op_type == "Reciprocal" and not node.domain
    return operand(node, 0) if node is not None and inverts else None


def _divide(facts: Facts, node: ir.Node) -> op.Operation:
    data, other = operand(node, 0), operand(node, 1)
    return OPAQUE if data is None or other is None else _by(facts, data, other)


def _by(facts: Facts, data: ir.Value, other: ir.Value) -> op.Operation:
    """One value divided by another."""
    divisor = _scalar(facts, other)
    if divisor:
        return op.Scaled(data, 1.0 / divisor)
    if facts.is_constant(other):
        return op.ScaledBy(data, other, divides=True) if divisor is None else OPAQUE
    return op.Quotient(data, other)


def _negate(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    return OPAQUE if data is None else op.Scaled(data, -1.0)


def _add(facts: Facts, node: ir.Node) -> op.Operation:
    left, right = operand(node, 0), operand(node, 1)
    return OPAQUE if left is None or right is None else op.Add(left, right)


def _subtract(facts: Facts, node: ir.Node) -> op.Operation:
    left, right = operand(node, 0), operand(node, 1)
    return OPAQUE if left is None or right is None else op.Subtract(left, right)


def _exponential(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    return OPAQUE if data is None else op.Exponential(data)


def _logarithm(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    return OPAQUE if data is None else op.Logarithm(data)


def _matmul(facts: Facts, node: ir.Node) -> op.Operation:
    left, right = operand(node, 0), operand(node, 1)
    if left is None or right is None:
        return OPAQUE
    ranks = facts.rank(left), facts.rank(right)
    turned = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))
    axes = None
    if ranks[0] is not None and ranks[1] is not None:
        axes = contractions.matmul(ranks[0], ranks[1], turned)
    factor = float(attribute(node, "alpha", 1.0))
    plain = factor == 1.0 and not any(turned)
    if facts.is_constant(right):
        return op.Linear(left, right, plain=plain and ranks[1] == 2, axes=axes)
    if facts.is_constant(left):
        return op.Linear(right, left, axes=contractions.swapped(axes))
    return op.MatMul(left, right, axes, factor)


def _fused_matmul(facts: Facts, node: ir.Node) -> op.Operation:
    """MatMul with a factor and transposed operands."""
    mixed = any(attribute(node, name, 0) for name in ("transBatchA", "transBatchB"))
    return OPAQUE if mixed else _matmul(facts, node)


def _einsum(facts: Facts, node: ir.Node) -> op.Operation:
    """A product of two operands, as long as no letter is twice in one of them."""
    equation = node.attributes.get("equation")
    left, right = operand(node, 0), operand(node, 1)
    if equation is None or left is None or right is None or len(node.inputs) != 2:
        return OPAQUE
    axes = contractions.einsum(equation.value, (facts.rank(left), facts.rank(right)))
    if axes is None:
        return OPAQUE
    if facts.is_constant(right):
        return op.Linear(left, right, axes=axes)
    if facts.is_constant(left):
        return op.Linear(right, left, axes=contractions.swapped(axes))
    return op.MatMul(left, right, axes)


def _convolution(facts: Facts, node: ir.Node) -> op.Operation:
    """One whose kernel has one place is a product with a matrix."""
    data, weight, bias = operand(node, 0), operand(node, 1), operand(node, 2)
    if data is None or weight is None or not facts.is_constant(weight):
        return OPAQUE
    shape = facts.shape(weight)
    steps = node.attributes.get("strides")
    pads = node.attributes.get("pads")
    padding = node.attributes.get("auto_pad")
    alone = (
        shape is not None
        and all(size == 1 for size in shape[2:])
        and (steps is None or all(step == 1 for step in steps.value))
        and (pads is None or not any(pads.value))
        and (padding is None or padding.value == "NOTSET")
        and (bias is None or facts.is_constant(bias))
    )
    if not alone or shape is None:
        return OPAQUE
    return op.Linear(data, weight, axes=contractions.pointwise_convolution(len(shape)))


def _gemm(facts: Facts, node: ir.Node) -> op.Operation:
    data, weight, bias = operand(node, 0), operand(node, 1), operand(node, 2)
    if data is None or weight is None or not facts.is_constant(weight):
        return OPAQUE
    if bias is not None and not (facts.is_constant(bias) and _is_for_all_rows(facts, bias)):
        return OPAQUE
    if attribute(node, "transA", 0):
        return OPAQUE
    axes = contractions.matmul(2, 2, (False, bool(attribute(node, "transB", 0))))
    return op.Linear(data, weight, axes=axes)


def _is_for_all_rows(facts: Facts, bias: ir.Value) -> bool:
    """Whether a bias of a product of two axes is the same for each row."""
    shape = facts.shape(bias)
    return shape is not None and (len(shape) < 2 or shape[0] == 1)


def _quantized_matmul(facts: Facts, node: ir.Node) -> op.Operation:
    """A weight that is stored packed, with its scales, zero points and bias beside it."""
    data, weight = operand(node, 0), operand(node, 1)
    stored = all(facts.is_constant(value) for value in node.inputs[1:] if value is not None)
    if data is None or weight is None or not stored:
        return OPAQUE
    rank = facts.rank(data)
    axes = None if rank is None else contractions.matmul(rank, 2)
    return op.Linear(data, weight, axes=axes, packed=True)


def _select(facts: Facts, node: ir.Node) -> op.Operation:
    condition, chosen, other = (operand(node, index) for index in range(3))
    if condition is None or chosen is None or other is None:
        return OPAQUE
    return op.Select(condition, chosen, other)


def _is_nan(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    return OPAQUE if data is None else op.IsNan(data)


def _is_infinite(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    return OPAQUE if data is None else op.IsInfinite(data)


def _and(facts: Facts, node: ir.Node) -> op.Operation:
    """With something else beside, it is true in fewer places."""
    for value in node.inputs:
        test = None if value is None else value.producer()
        if test is not None and test.op_type == "IsInf" and not test.domain:
            return _is_infinite(facts, test)
    return OPAQUE


def _softmax(facts: Facts, node: ir.Node) -> op.Operation:
    data = operand(node, 0)
    if data is None:
        return OPAQUE
    whole = _opset(node) < 13  # all axes from this one on were one, and it was the second
    axis = from_end(facts, data, int(attribute(node, "axis", 1 if whole else -1)))
    if axis is None or (whole and axis != -1):
        return OPAQUE
    return op.Softmax(data, axis, logarithm=node.op_type == "LogSoftmax")


def _opset(node: ir.Node) -> int:
    """Version of the standard operators that the node is one of."""
    graph = node.graph
    return 13 if graph is None else graph.opset_imports.get("", 13)


READERS: dict[tuple[str, str], Reader] = {
    **{
        ("", name): _first_operand_layout
        for name in (
            "Transpose",
            "Reshape",
            "Squeeze",
            "Unsqueeze",
            "Split",
            "Slice",
            "Identity",
            "Flatten",
        )
    },
    ("", "Dropout"): _dropout,
    ("", "Gather"): gathered.gather,
    ("", "GatherElements"): gathered.gather_elements,
    ("", "GatherND"): gathered.gather_nd,
    ("", "Pad"): _pad,
    ("", "Concat"): _concat,
    ("", "ScatterND"): _scatter,
    ("", "ScatterElements"): _scatter,
    ("", "TensorScatter"): _tensor_scatter,
    ("", "ConstantOfShape"): _filled,
    ("", "Expand"): _expand,
    ("", "Tile"): _tile,
    ("", "Cast"): _cast,
    ("", "CastLike"): _cast,
    ("", "Mul"): _multiply,
    ("", "Div"): _divide,
    ("", "Neg"): _negate,
    ("", "Add"): _add,
    ("", "Sub"): _subtract,
    ("", "ReduceMax"): reductions.reduce_row,
    ("", "ReduceSum"): reductions.reduce_row,
    ("", "ReduceLogSumExp"): reductions.reduce_row,
    ("", "Exp"): _exponential,
    ("", "Log"): _logarithm,
    ("", "MatMul"): _matmul,
    ("com.microsoft", "FusedMatMul"): _fused_matmul,
    ("", "Einsum"): _einsum,
    ("", "Conv"): _convolution,
    ("", "Gemm"): _gemm,
    ("com.microsoft", "MatMulNBits"): _quantized_matmul,
    ("com.microsoft", "MatMulBnb4"): _quantized_matmul,
    ("", "Where"): _select,
    ("", "IsNaN"): _is_nan,
    ("", "IsInf"): _is_infinite,
    ("", "And"): _and,
    ("", "Softmax"): _softmax,
    ("", "LogSoftmax"): _softmax,
    **attentions.READERS,
}
