"""What each aten operator means, in the vocabulary of :mod:`mla_opt.graphs.operations`.

One small function per operator family, found by the operator's name without its overload. Both the
whole operators of an export (``linear``, ``scaled_dot_product_attention``) and what decomposition
makes of them are here. A form that its function does not know is
:class:`~mla_opt.graphs.operations.Opaque`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import fx

from mla_opt.graphs import contractions
from mla_opt.graphs import operations as op
from mla_opt.graphs.torch import moves
from mla_opt.graphs.torch.lifted_program import symbolic_shape
from mla_opt.graphs.torch.values import Literal
from mla_opt.handles import Value


class Facts(Protocol):
    """What has to be known of values to read the nodes between them."""

    def is_constant(self, value: fx.Node) -> bool:
        """Whether the value depends on stored tensors only."""

    def scalar(self, value: fx.Node) -> float | None:
        """The number that a stored tensor of one element holds."""


Reader = Callable[[Facts, fx.Node], op.Operation]

OPAQUE = op.Opaque()
_WHOLE = torch.iinfo(torch.int64).max


def operator_name(node: fx.Node) -> str:
    """Name of a node's operator, without overload; empty for what is none of aten's or prims'."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace not in ("aten", "prims"):
        return ""
    return str(target._schema.name).rpartition("::")[2]


def read(facts: Facts, node: fx.Node) -> op.Operation:
    """Translate one node; :class:`Opaque` when nothing is known of it."""
    reader = READERS.get(operator_name(node))
    return OPAQUE if reader is None else reader(facts, node)


def _operand(node: fx.Node, index: int, name: str = "") -> Any:
    """An argument by its place or its name; None where it is left out."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name)


def _value(argument: Any) -> fx.Node | None:
    """The argument, if it is a tensor of the graph."""
    tensor = isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), torch.Tensor)
    return argument if tensor else None


def _number(facts: Facts, argument: Any) -> float | None:
    """The number that an argument is or holds."""
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        return float(argument)
    value = _value(argument)
    return None if value is None else facts.scalar(value)


def _layout(facts: Facts, node: fx.Node) -> op.Operation:
    data = _value(_operand(node, 0, "self"))
    return OPAQUE if data is None else _moved(node, data)


def _moved(node: fx.Node, *data: fx.Node, axis: int | None = None) -> op.Layout:
    """A layout operator, with what it does to axes."""
    move = moves.move_of(operator_name(node), node)
    handles = tuple(map(_handle, data))
    if isinstance(move, str):
        return op.Layout(handles, axis, None, move)
    return op.Layout(handles, axis, move)


def _handle(node: fx.Node) -> Value:
    return cast(Value, node)


def _copy(facts: Facts, node: fx.Node) -> op.Operation:
    """``copy`` gives the second operand the shape of the first, whose elements all go."""
    source = _value(_operand(node, 1, "src"))
    if source is None:
        return OPAQUE
    same = symbolic_shape(source) == symbolic_shape(node)
    return _moved(node, source) if same else op.Broadcast(_handle(source))


def _overwrite(facts: Facts, node: fx.Node) -> op.Operation:
    """A piece of the first operand gives way to the second."""
    data, source = _value(_operand(node, 0, "self")), _value(_operand(node, 1, "src"))
    if data is None or source is None:
        return OPAQUE
    return _moved(node, data, source)


def _index_select(facts: Facts, node: fx.Node) -> op.Operation:
    data, index = _value(_operand(node, 0)), _value(_operand(node, 2, "index"))
    if data is None or index is None or not facts.is_constant(index):
        return OPAQUE
    return _moved(node, data)


def _pad(facts: Facts, node: fx.Node) -> op.Operation:
    return _layout(facts, node) if not _operand(node, 2, "value") else OPAQUE


def _pad_in_mode(facts: Facts, node: fx.Node) -> op.Operation:
    """``aten.pad``: other modes than that with a constant repeat what is there."""
    constant = _operand(node, 2, "mode") in (None, "constant")
    return _layout(facts, node) if constant and not _operand(node, 3, "value") else OPAQUE


def _concat(facts: Facts, node: fx.Node) -> op.Operation:
    parts = [_value(each) for each in _operand(node, 0, "tensors") or ()]
    shape = symbolic_shape(node)
    if shape is None or any(part is None for part in parts):
        return OPAQUE
    axis = _operand(node, 1, "dim") or 0
    data = [part for part in parts if part is not None]
    return _moved(node, *data, axis=axis - len(shape) if axis >= 0 else axis)


def _expand(facts: Facts, node: fx.Node) -> op.Operation:
    data = _value(_operand(node, 0, "self"))
    if data is None:
        return OPAQUE
    same = symbolic_shape(data) == symbolic_shape(node)
    return _moved(node, data) if same else op.Broadcast(_handle(data))


def _filled(facts: Facts, node: fx.Node) -> op.Operation:
    return op.Filled()


def _cast(facts: Facts, node: fx.Node) -> op.Operation:
    data = _value(_operand(node, 0, "self"))
    if data is None:
        return OPAQUE
    before, after = data.meta["val"].dtype, node.meta["val"].dtype
    if before == after:
        return _moved(node, data)
    floating = before.is_floating_point and after.is_floating_point
    return op.Cast(_handle(data)) if floating else OPAQUE


def _multiply(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = _operand(node, 0, "self"), _operand(node, 1, "other")
    for data, factor in ((left, right), (right, left)):
        number, value = _number(facts, factor), _value(data)
        if number is not None and value is not None:
            return op.Scaled(_handle(value), number)
    for data, factor in ((left, right), (right, left)):
        value, other = _value(data), _value(factor)
        if value is not None and other is not None and facts.is_constant(other):
            return op.ScaledBy(_handle(value), _handle(other))
    return OPAQUE


def _divide(facts: Facts, node: fx.Node) -> op.Operation:
    data, divisor = _value(_operand(node, 0)), _number(facts, _operand(node, 1, "other"))
    other = _value(_operand(node, 1, "other"))
    if data is None or node.kwargs.get("rounding_mode"):
        return OPAQUE
    if divisor is None and other is not None:
        kind = op.ScaledBy if facts.is_constant(other) else op.Quotient
        return kind(_handle(data), _handle(other))
    if not divisor:
        return OPAQUE
    return op.Scaled(_handle(data), 1.0 / divisor)


def _negate(facts: Facts, node: fx.Node) -> op.Operation:
    data = _value(_operand(node, 0, "self"))
    return OPAQUE if data is None else op.Scaled(_handle(data), -1.0)


def _add(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = _operand(node, 0, "self"), _operand(node, 1, "other")
    if node.kwargs.get("alpha", 1) != 1:
        return OPAQUE
    first, second = _value(left), _value(right)
    if first is not None and second is not None:
        return op.Add(_handle(first), _handle(second))
    data = first or second
    return OPAQUE if data is None else op.Shifted(_handle(data))


def _subtract(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = _value(_operand(node, 0)), _value(_operand(node, 1, "other"))
    if left is None or right is None or node.kwargs.get("alpha", 1) != 1:
        return OPAQUE
    return op.Subtract(_handle(left), _handle(right))


def _row_maximum(facts: Facts, node: fx.Node) -> op.Operation:
    axis = _reduced_axis(node)
    return OPAQUE if axis is None else op.RowMaximum(_handle(node.all_input_nodes[0]), axis)


def _row_sum(facts: Facts, node: fx.Node) -> op.Operation:
    data, axis = _value(_operand(node, 0)), _reduced_axis(node)
    if axis is None or data is None or data.meta["val"].dtype != node.meta["val"].dtype:
        return OPAQUE
    return op.RowSum(_handle(data), axis)


def _reduced_axis(node: fx.Node) -> int | None:
    """The one axis, counted from the end, that an operator makes one place of."""
    data, dims = _value(_operand(node, 0)), _operand(node, 1, "dim")
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if data is None or not _operand(node, 2, "keepdim") or len(dims) != 1:
        return None
    return _from_end(data, dims[0])


def _from_end(data: fx.Node, axis: int) -> int:
    return axis - _rank(data) if axis >= 0 else axis


def _rank(value: fx.Node) -> int:
    return len(symbolic_shape(value) or ())


def _linear(facts: Facts, node: fx.Node) -> op.Operation:
    data, weight = _value(_operand(node, 0)), _value(_operand(node, 1, "weight"))
    bias = _operand(node, 2, "bias")
    if data is None or weight is None:
        return OPAQUE
    if not facts.is_constant(weight):
        return op.Opaque(product=True)
    if bias is not None and not (isinstance(bias, fx.Node) and facts.is_constant(bias)):
        return OPAQUE
    axes = contractions.matmul(_rank(data), _rank(weight), (False, True))
    return op.Linear(_handle(data), _handle(weight), bias is None, transposed=True, axes=axes)


def _matmul(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = _value(_operand(node, 0)), _value(_operand(node, 1, "other"))
    if left is None or right is None:
        return OPAQUE
    axes = contractions.matmul(_rank(left), _rank(right))
    if facts.is_constant(right):
        return op.Linear(_handle(left), _handle(right), plain=_rank(right) == 2, axes=axes)
    if facts.is_constant(left):
        return op.Linear(_handle(right), _handle(left), axes=contractions.swapped(axes))
    return op.MatMul(_handle(left), _handle(right), axes)


def _baddbmm(facts: Facts, node: fx.Node) -> op.Operation:
    """``beta * input + alpha * batch1 @ batch2``."""
    addend, left, right = (_value(_operand(node, index)) for index in range(3))
    alpha, beta = (node.kwargs.get(name, 1) for name in ("alpha", "beta"))
    numbers = isinstance(alpha, (int, float)) and isinstance(beta, (int, float))
    if addend is None or left is None or right is None or not numbers:
        return OPAQUE
    if facts.is_constant(left) or facts.is_constant(right):
        return OPAQUE
    axes = contractions.matmul(_rank(left), _rank(right))
    alpha, beta = float(cast(float, alpha)), float(cast(float, beta))
    added = None if beta == 0.0 else _handle(addend)
    return op.MatMul(_handle(left), _handle(right), axes, alpha, added, beta)


def _einsum(facts: Facts, node: fx.Node) -> op.Operation:
    """A product of two operands, as long as no letter is twice in one of them."""
    parts = [_value(each) for each in _operand(node, 1, "tensors") or ()]
    labels = contractions.einsum_labels(str(_operand(node, 0, "equation")), len(parts))
    if labels is None or len(parts) != 2 or parts[0] is None or parts[1] is None:
        return OPAQUE
    left, right = parts[0], parts[1]
    axes = op.Contraction(tuple(labels[0][0]), tuple(labels[0][1]), tuple(labels[1]))
    if facts.is_constant(right):
        return op.Linear(_handle(left), _handle(right), axes=axes)
    if facts.is_constant(left):
        return op.Linear(_handle(right), _handle(left), axes=contractions.swapped(axes))
    return op.MatMul(_handle(left), _handle(right), axes)


def _convolution(facts: Facts, node: fx.Node) -> op.Operation:
    """One whose kernel has one place is a product with a matrix."""
    data, weight, bias = (_value(_operand(node, place)) for place in range(3))
    if data is None or weight is None or not facts.is_constant(weight):
        return OPAQUE
    usual = all(
        _is_all(_operand(node, place, name), number) for place, name, number in _usual(node)
    )
    shape = symbolic_shape(weight) or ()
    alone = len(shape) == _rank(data) and all(size == 1 for size in shape[2:])
    if not usual or not alone or (bias is not None and not facts.is_constant(bias)):
        return OPAQUE
    axes = contractions.pointwise_convolution(len(shape))
    return op.Linear(_handle(data), _handle(weight), axes=axes)


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
    bias, data, weight = (_value(_operand(node, index)) for index in range(3))
    scaled = node.kwargs.get("alpha", 1) != 1 or node.kwargs.get("beta", 1) != 1
    if bias is None or data is None or weight is None or scaled:
        return OPAQUE
    if not facts.is_constant(bias) or not facts.is_constant(weight):
        return OPAQUE
    axes = contractions.matmul(_rank(data), _rank(weight))
    return op.Linear(_handle(data), _handle(weight), axes=axes)


def _select(facts: Facts, node: fx.Node) -> op.Operation:
    condition = _value(_operand(node, 0, "condition"))
    chosen, other = (_choice(_operand(node, place)) for place in (1, 2))
    if condition is None or chosen is None or other is None:
        return OPAQUE
    return op.Select(_handle(condition), chosen, other)


def _masked_fill(facts: Facts, node: fx.Node) -> op.Operation:
    data, mask = _value(_operand(node, 0)), _value(_operand(node, 1, "mask"))
    fill = _choice(_operand(node, 2, "value"))
    if data is None or mask is None or fill is None:
        return OPAQUE
    return op.Select(_handle(mask), fill, _handle(data))


def _choice(argument: Any) -> Value | None:
    if isinstance(argument, (int, float)):
        return cast(Value, Literal(float(argument)))
    value = _value(argument)
    return None if value is None else _handle(value)


def _is_nan(facts: Facts, node: fx.Node) -> op.Operation:
    data = _value(_operand(node, 0, "self"))
    return OPAQUE if data is None else op.IsNan(_handle(data))


def _softmax(facts: Facts, node: fx.Node) -> op.Operation:
    data, axis = _value(_operand(node, 0)), _operand(node, 1, "dim")
    if data is None or not isinstance(axis, int):
        return OPAQUE
    logarithm = "log_softmax" in operator_name(node)
    return op.Softmax(_handle(data), _from_end(data, axis), logarithm)


def _exponential(facts: Facts, node: fx.Node) -> op.Operation:
    data = _value(_operand(node, 0, "self"))
    return OPAQUE if data is None else op.Exponential(_handle(data))


def _dropout(facts: Facts, node: fx.Node) -> op.Operation:
    idle = not _operand(node, 1, "p") or not _operand(node, 2, "train")
    return _layout(facts, node) if idle else OPAQUE


def _attention(facts: Facts, node: fx.Node) -> op.Operation:
    """``scaled_dot_product_attention`` as it was written."""
    query, key, value, bias = (_value(_operand(node, index)) for index in range(4))
    if query is None or key is None or value is None:
        return OPAQUE
    bias = bias or _value(node.kwargs.get("attn_mask"))
    dropout, causal = _operand(node, 4, "dropout_p"), _operand(node, 5, "is_causal")
    return _fused(node, node, (query, key, value), bias, dropout, causal)


def _flash_attention(facts: Facts, node: fx.Node) -> op.Operation:
    """What the CPU's dispatch makes of it: output and log-sum-exp."""
    query, key, value = (_value(_operand(node, index)) for index in range(3))
    outputs = [user for user in node.users if user.args[1:] == (0,)]
    if query is None or key is None or value is None or len(outputs) != 1:
        return OPAQUE
    bias = _value(node.kwargs.get("attn_mask"))
    dropout, causal = _operand(node, 3, "dropout_p"), _operand(node, 4, "is_causal")
    return _fused(node, outputs[0], (query, key, value), bias, dropout, causal)


def _fused(
    node: fx.Node,
    output: fx.Node,
    operands: tuple[fx.Node, fx.Node, fx.Node],
    bias: fx.Node | None,
    dropout: Any,
    causal: Any,
) -> op.Operation:
    query, key, value = operands
    shape, scale = symbolic_shape(query), node.kwargs.get("scale")
    if scale is None and (not shape or not isinstance(shape[-1], int)):
        return OPAQUE
    return op.FusedAttention(
        query=_handle(query),
        key=_handle(key),
        value=_handle(value),
        bias=None if bias is None else _handle(bias),
        scale=float(cast(float, scale)) if scale is not None else 1.0 / math.sqrt(shape[-1]),  # type: ignore[index]
        causal=bool(causal),
        output=_handle(output),
        unsupported=_beyond_plain_attention(node, query, key, dropout),
    )


def _beyond_plain_attention(node: fx.Node, query: fx.Node, key: fx.Node, dropout: Any) -> str:
    if _rank(query) != 4:
        return "its operands are not of rank 4"
    if dropout:
        return "it drops out weights; export the model for inference"
    return ""


READERS: dict[str, Reader] = {
    **dict.fromkeys(
        (
            "alias",
            "clone",
            "contiguous",
            "detach",
            "lift_fresh_copy",
            "_unsafe_view",
            "view",
            "view_copy",
            "reshape",
            "flatten",
            "unflatten",
            "permute",
            "transpose",
            "t",
            "numpy_T",
            "movedim",
            "swapaxes",
            "squeeze",
            "unsqueeze",
            "slice",
            "select",
            "narrow",
            "split",
            "split_with_sizes",
            "chunk",
            "unbind",
            "flip",
            "roll",
        ),
        _layout,
    ),
    "copy": _copy,
    "slice_scatter": _overwrite,
    "select_scatter": _overwrite,
    "index_select": _index_select,
    "constant_pad_nd": _pad,
    "pad": _pad_in_mode,
    "cat": _concat,
    "concat": _concat,
    "expand": _expand,
    "expand_copy": _expand,
    "repeat": _expand,
    "tile": _expand,
    "repeat_interleave": _expand,
    **dict.fromkeys(
        (
            "empty",
            "new_empty",
            "empty_like",
            "zeros",
            "zeros_like",
            "new_zeros",
            "ones",
            "ones_like",
            "new_ones",
            "full",
            "full_like",
            "new_full",
        ),
        _filled,
    ),
    "_to_copy": _cast,
    "to": _cast,
    "type_as": _cast,
    "convert_element_type": _cast,
    "mul": _multiply,
    "div": _divide,
    "neg": _negate,
    "add": _add,
    "sub": _subtract,
    "amax": _row_maximum,
    "max": _row_maximum,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "einsum": _einsum,
    "where": _select,
    "masked_fill": _masked_fill,
    "isnan": _is_nan,
    "softmax": _softmax,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "log_softmax": _softmax,
    "_log_softmax": _softmax,
    "exp": _exponential,
    "sum": _row_sum,
    "baddbmm": _baddbmm,
    "conv1d": _convolution,
    "conv2d": _convolution,
    "convolution": _convolution,
    "dropout": _dropout,
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _flash_attention,
}
