"""What each aten operator means, in the vocabulary of :mod:`mla_opt.graphs.operations`.

One small function per operator family, found by the operator's name without its overload. Both the
whole operators of an export (``linear``, ``scaled_dot_product_attention``) and what decomposition
makes of them are here. A form that its function does not know is
:class:`~mla_opt.graphs.operations.Opaque`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.torch import attentions, gathered, products
from mla_opt.graphs.torch.lifted_program import symbolic_shape
from mla_opt.graphs.torch.reading import (
    OPAQUE,
    Facts,
    Reader,
    from_end,
    handle,
    layout_of,
    moved_by,
    number_of,
    operand,
    operator_name,
    tensor_of,
)
from mla_opt.graphs.torch.values import Literal
from mla_opt.handles import Value

_WHOLE = torch.iinfo(torch.int64).max


def read(facts: Facts, node: fx.Node) -> op.Operation:
    """Translate one node; :class:`Opaque` when nothing is known of it."""
    reader = READERS.get(operator_name(node))
    return OPAQUE if reader is None else reader(facts, node)


def _copy(facts: Facts, node: fx.Node) -> op.Operation:
    """``copy`` gives the second operand the shape of the first, whose elements all go."""
    source = tensor_of(operand(node, 1, "src"))
    if source is None:
        return OPAQUE
    same = symbolic_shape(source) == symbolic_shape(node)
    return moved_by(node, source) if same else op.Broadcast(handle(source))


def _overwrite(facts: Facts, node: fx.Node) -> op.Operation:
    """A piece of the first operand gives way to the second."""
    data, source = tensor_of(operand(node, 0, "self")), tensor_of(operand(node, 1, "src"))
    if data is None or source is None:
        return OPAQUE
    return moved_by(node, data, source)


def _written(place: int, name: str) -> Reader:
    """Rows, the argument at ``place``, are written to places of the first operand."""

    def reader(facts: Facts, node: fx.Node) -> op.Operation:
        data, rows = tensor_of(operand(node, 0, "self")), tensor_of(operand(node, place, name))
        if data is None or rows is None:
            return OPAQUE
        return moved_by(node, data, rows)

    return reader


def _pad(facts: Facts, node: fx.Node) -> op.Operation:
    return layout_of(facts, node) if not operand(node, 2, "value") else OPAQUE


def _pad_in_mode(facts: Facts, node: fx.Node) -> op.Operation:
    """``aten.pad``: other modes than that with a constant repeat what is there."""
    constant = operand(node, 2, "mode") in (None, "constant")
    return layout_of(facts, node) if constant and not operand(node, 3, "value") else OPAQUE


def _stack(facts: Facts, node: fx.Node) -> op.Operation:
    parts = [tensor_of(each) for each in operand(node, 0, "tensors") or ()]
    data = [part for part in parts if part is not None]
    return moved_by(node, *data) if len(data) == len(parts) else OPAQUE


def _concat(facts: Facts, node: fx.Node) -> op.Operation:
    parts = [tensor_of(each) for each in operand(node, 0, "tensors") or ()]
    shape = symbolic_shape(node)
    if shape is None or any(part is None for part in parts):
        return OPAQUE
    axis = operand(node, 1, "dim") or 0
    data = [part for part in parts if part is not None]
    return moved_by(node, *data, axis=axis - len(shape) if axis >= 0 else axis)


def _expand(facts: Facts, node: fx.Node) -> op.Operation:
    data = tensor_of(operand(node, 0, "self"))
    if data is None:
        return OPAQUE
    same = symbolic_shape(data) == symbolic_shape(node)
    return moved_by(node, data) if same else op.Broadcast(handle(data))


def _repeat(facts: Facts, node: fx.Node) -> op.Operation:
    """Repeats whole axes; those whose size varies may not be among them."""
    data = tensor_of(operand(node, 0, "self"))
    if data is None:
        return OPAQUE
    before, after = symbolic_shape(data) or (), symbolic_shape(node) or ()
    own = after[len(after) - len(before) :]
    if all(isinstance(size, int) or sizes.same(size, made) for size, made in zip(before, own)):
        return _expand(facts, node)
    return op.Layout((handle(data),), None, None, "it repeats an axis whose size varies")


def _filled(facts: Facts, node: fx.Node) -> op.Operation:
    return op.Filled()


def _filled_with(place: int) -> Reader:
    """One number everywhere, the argument at ``place``; it may follow from sizes."""

    def reader(facts: Facts, node: fx.Node) -> op.Operation:
        number = operand(node, place, "fill_value")
        if isinstance(number, fx.Node):
            return OPAQUE
        return op.Filled(float(number) if isinstance(number, (int, float)) else None)

    return reader


def _cast(facts: Facts, node: fx.Node) -> op.Operation:
    data = tensor_of(operand(node, 0, "self"))
    if data is None:
        return OPAQUE
    before, after = data.meta["val"].dtype, node.meta["val"].dtype
    if before == after:
        return moved_by(node, data)
    floating = before.is_floating_point and after.is_floating_point
    return op.Cast(handle(data)) if floating else OPAQUE


def _multiply(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = operand(node, 0, "self"), operand(node, 1, "other")
    for data, factor in ((left, right), (right, left)):
        number, value = number_of(facts, factor), tensor_of(data)
        if number is not None and value is not None:
            return op.Scaled(handle(value), number)
    for data, factor in ((left, right), (right, left)):
        value, other = tensor_of(data), tensor_of(factor)
        if value is not None and other is not None and facts.is_constant(other):
            return op.ScaledBy(handle(value), handle(other))
    return OPAQUE


def _divide(facts: Facts, node: fx.Node) -> op.Operation:
    data, divisor = tensor_of(operand(node, 0)), number_of(facts, operand(node, 1, "other"))
    other = tensor_of(operand(node, 1, "other"))
    if data is None or node.kwargs.get("rounding_mode"):
        return OPAQUE
    if divisor is None and other is not None:
        if facts.is_constant(other):
            return op.ScaledBy(handle(data), handle(other), divides=True)
        return op.Quotient(handle(data), handle(other))
    if not divisor:
        return OPAQUE
    return op.Scaled(handle(data), 1.0 / divisor)


def _negate(facts: Facts, node: fx.Node) -> op.Operation:
    data = tensor_of(operand(node, 0, "self"))
    return OPAQUE if data is None else op.Scaled(handle(data), -1.0)


def _add(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = operand(node, 0, "self"), operand(node, 1, "other")
    if node.kwargs.get("alpha", 1) != 1:
        return OPAQUE
    first, second = tensor_of(left), tensor_of(right)
    if first is not None and second is not None:
        return op.Add(handle(first), handle(second))
    data, number = (first, right) if first is not None else (second, left)
    fixed = data is not None and not isinstance(number, fx.Node)  # else it follows from sizes
    return op.Shifted(handle(data)) if fixed and data is not None else OPAQUE


def _subtract(facts: Facts, node: fx.Node) -> op.Operation:
    left, right = tensor_of(operand(node, 0)), tensor_of(operand(node, 1, "other"))
    if left is None or right is None or node.kwargs.get("alpha", 1) != 1:
        return OPAQUE
    return op.Subtract(handle(left), handle(right))


def _row_maximum(facts: Facts, node: fx.Node) -> op.Operation:
    axis = _reduced_axis(node)
    return OPAQUE if axis is None else op.RowMaximum(handle(node.all_input_nodes[0]), axis)


def _row_sum(facts: Facts, node: fx.Node) -> op.Operation:
    data, axis = tensor_of(operand(node, 0)), _reduced_axis(node)
    if axis is None or data is None or data.meta["val"].dtype != node.meta["val"].dtype:
        return OPAQUE
    return op.RowSum(handle(data), axis)


def _logarithm_of_sum(facts: Facts, node: fx.Node) -> op.Operation:
    axis = _reduced_axis(node)
    return OPAQUE if axis is None else op.LogarithmOfSum(handle(node.all_input_nodes[0]), axis)


def _reduced_axis(node: fx.Node) -> int | None:
    """The one axis, counted from the end, that an operator makes one place of."""
    data, dims = tensor_of(operand(node, 0)), operand(node, 1, "dim")
    if isinstance(dims, fx.Node):  # the larger of two tensors
        return None
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if data is None or not operand(node, 2, "keepdim") or len(dims) != 1:
        return None
    return from_end(data, dims[0])


def _select(facts: Facts, node: fx.Node) -> op.Operation:
    condition = tensor_of(operand(node, 0, "condition"))
    chosen, other = (_choice(operand(node, place)) for place in (1, 2))
    if condition is None or chosen is None or other is None:
        return OPAQUE
    return op.Select(handle(condition), chosen, other)


def _masked_fill(facts: Facts, node: fx.Node) -> op.Operation:
    data, mask = tensor_of(operand(node, 0)), tensor_of(operand(node, 1, "mask"))
    fill = _choice(operand(node, 2, "value"))
    if data is None or mask is None or fill is None:
        return OPAQUE
    return op.Select(handle(mask), fill, handle(data))


def _choice(argument: Any) -> Value | None:
    if isinstance(argument, (int, float)):
        return cast(Value, Literal(float(argument)))
    value = tensor_of(argument)
    return None if value is None else handle(value)


def _is_nan(facts: Facts, node: fx.Node) -> op.Operation:
    data = tensor_of(operand(node, 0, "self"))
    return OPAQUE if data is None else op.IsNan(handle(data))


def _nan_to_num(facts: Facts, node: fx.Node) -> op.Operation:
    data, fill = tensor_of(operand(node, 0)), operand(node, 1, "nan")
    return OPAQUE if data is None or fill else op.NanToZero(handle(data))


def _softmax(facts: Facts, node: fx.Node) -> op.Operation:
    data, axis = tensor_of(operand(node, 0)), operand(node, 1, "dim")
    if data is None or not isinstance(axis, int):
        return OPAQUE
    logarithm = "log_softmax" in operator_name(node)
    return op.Softmax(handle(data), from_end(data, axis), logarithm)


def _exponential(facts: Facts, node: fx.Node) -> op.Operation:
    data = tensor_of(operand(node, 0, "self"))
    return OPAQUE if data is None else op.Exponential(handle(data))


def _logarithm(facts: Facts, node: fx.Node) -> op.Operation:
    data = tensor_of(operand(node, 0, "self"))
    return OPAQUE if data is None else op.Logarithm(handle(data))


def _dropout(facts: Facts, node: fx.Node) -> op.Operation:
    idle = not operand(node, 1, "p") or not operand(node, 2, "train")
    return layout_of(facts, node) if idle else OPAQUE


READERS: dict[str, Reader] = {
    **products.READERS,
    **attentions.READERS,
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
            "mT",
            "mH",
            "adjoint",
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
        layout_of,
    ),
    "copy": _copy,
    "slice_scatter": _overwrite,
    "select_scatter": _overwrite,
    "index_put": _written(2, "values"),
    "index_copy": _written(3, "source"),
    "scatter": _written(3, "src"),
    "gather": gathered.gather,
    "index_select": gathered.index_select,
    "constant_pad_nd": _pad,
    "pad": _pad_in_mode,
    "cat": _concat,
    "concat": _concat,
    "stack": _stack,
    "index": gathered.indexed,
    "broadcast_to": _expand,
    "expand": _expand,
    "expand_copy": _expand,
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat,
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
        ),
        _filled,
    ),
    "full": _filled_with(1),
    "full_like": _filled_with(1),
    "new_full": _filled_with(2),
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
    "where": _select,
    "masked_fill": _masked_fill,
    "isnan": _is_nan,
    "nan_to_num": _nan_to_num,
    "softmax": _softmax,
    "_softmax": _softmax,
    "_safe_softmax": _softmax,
    "log_softmax": _softmax,
    "_log_softmax": _softmax,
    "exp": _exponential,
    "log": _logarithm,
    "logsumexp": _logarithm_of_sum,
    "sum": _row_sum,
    "dropout": _dropout,
}
