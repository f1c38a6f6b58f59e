"""What ONNX operators make of integers that are known as expressions: one rule a family.

What has no rule, or operands of which too little is known, has a content that is not known.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import sympy

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.integers import (
    MOST_ENTRIES,
    Columns,
    Entries,
    Integers,
    Ramp,
    as_ramp,
    entries,
    from_array,
    number,
)
from mla_opt.graphs.onnx.shape_rules.facts import (
    Facts,
    attribute,
    axis_of,
    numbers_at,
    operand,
    shape_at,
)
from mla_opt.graphs.onnx.shape_rules.slices import spans_of
from mla_opt.graphs.sizes import Expression

Rule = Callable[[Facts, ir.Node], Integers | None]


def content_of(facts: Facts, node: ir.Node) -> Integers | None:
    """Return the content of a node's only output."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = RULES.get((domain, node.op_type))
    return None if rule is None else rule(facts, node)


def _content(facts: Facts, node: ir.Node, place: int) -> Integers | None:
    value = operand(node, place)
    return None if value is None else facts.integers(value)


def _array(facts: Facts, node: ir.Node, place: int) -> npt.NDArray[Any] | None:
    content = _content(facts, node, place)
    if isinstance(content, Ramp) and not content.steps:
        return _single(content.start)
    return content.array if isinstance(content, Entries) else None


def _single(value: Expression) -> npt.NDArray[Any]:
    array = np.empty((), dtype=object)
    array[()] = value
    return array


def _simplified(array: Any) -> Entries | None:
    """Entries after arithmetic: each a number again where it is one."""
    array = array if isinstance(array, np.ndarray) else _single(array)
    if array.size > MOST_ENTRIES:
        return None
    result = np.empty(array.shape, dtype=object)
    flat, source = result.reshape(-1), array.reshape(-1)
    for place, value in enumerate(source):
        flat[place] = sizes.plain(sympy.expand(value)) if isinstance(value, sympy.Expr) else value
    return Entries(result)


# Sources


def _shape(facts: Facts, node: ir.Node) -> Integers | None:
    shape = shape_at(facts, node, 0)
    if shape is None:
        return None
    return entries(list(shape[attribute(node, "start", 0) : attribute(node, "end")]))


def _size(facts: Facts, node: ir.Node) -> Integers | None:
    shape = shape_at(facts, node, 0)
    return None if shape is None else Entries(_single(sizes.product(shape)))


def _constant(facts: Facts, node: ir.Node) -> Integers | None:
    if "value_int" in node.attributes:
        return Entries(_single(attribute(node, "value_int")))
    if "value_ints" in node.attributes:
        return entries(list(attribute(node, "value_ints")))
    tensor = attribute(node, "value")
    if tensor is None or tensor.size > MOST_ENTRIES:
        return None
    kind = tensor.dtype
    known = kind.is_integer() or kind == ir.DataType.BOOL
    return from_array(np.asarray(tensor.numpy())) if known else None


def _filled(facts: Facts, node: ir.Node) -> Integers | None:
    tensor = attribute(node, "value")
    if tensor is None or not (tensor.dtype.is_integer() or tensor.dtype == ir.DataType.BOOL):
        return None
    fill = np.asarray(tensor.numpy()).reshape(-1)[0].item()
    shape = facts.shape(node.outputs[0])
    if shape is None:
        return None
    if all(isinstance(size, int) for size in shape) and math.prod(shape) <= MOST_ENTRIES:
        return from_array(np.full(shape, fill))
    return Ramp(fill, (0,) * len(shape)) if isinstance(fill, int) else None


def _range(facts: Facts, node: ir.Node) -> Integers | None:
    start, limit, delta = (number(_content(facts, node, place)) for place in range(3))
    if start is None or delta is None:
        return None
    if isinstance(start, int) and isinstance(limit, int) and isinstance(delta, int) and delta:
        made = range(start, limit, delta)
        if made[:MOST_ENTRIES] == made:  # its length may be more than a C integer holds
            return entries(list(made))
    return Ramp(start, (delta,))


# Arithmetic


def _arithmetic(
    combine: Callable[[Any, Any], Any], on_ramps: Callable[[Ramp, Ramp], Ramp | None]
) -> Rule:
    def rule(facts: Facts, node: ir.Node) -> Integers | None:
        left, right = _array(facts, node, 0), _array(facts, node, 1)
        if left is not None and right is not None:
            try:
                return _simplified(combine(left, right))
            except (TypeError, ValueError, ZeroDivisionError):
                return None
        shape = facts.shape(node.outputs[0])
        if shape is None:
            return None
        ramps = [_broadcast_ramp(facts, node, place, len(shape)) for place in (0, 1)]
        first, second = ramps
        return None if first is None or second is None else on_ramps(first, second)

    return rule


def _broadcast_ramp(facts: Facts, node: ir.Node, place: int, rank: int) -> Ramp | None:
    shape = shape_at(facts, node, place)
    ramp = None if shape is None else as_ramp(_content(facts, node, place), len(shape))
    if ramp is None:
        return None
    return Ramp(ramp.start, (0,) * (rank - len(ramp.steps)) + ramp.steps)


def _sum_of_ramps(left: Ramp, right: Ramp) -> Ramp:
    steps = tuple(one + other for one, other in zip(left.steps, right.steps))
    return Ramp(sizes.plain(left.start + right.start), steps)


def _difference_of_ramps(left: Ramp, right: Ramp) -> Ramp:
    steps = tuple(one - other for one, other in zip(left.steps, right.steps))
    return Ramp(sizes.plain(left.start - right.start), steps)


def _product_of_ramps(left: Ramp, right: Ramp) -> Ramp | None:
    for one, other in ((left, right), (right, left)):
        if not any(one.steps):
            return Ramp(
                sizes.plain(other.start * one.start),
                tuple(sizes.plain(step * one.start) for step in other.steps),
            )
    return None


def _no_ramps(left: Ramp, right: Ramp) -> None:
    return None


def _divide(left: Any, right: Any) -> Any:
    divided = np.frompyfunc(_whole_quotient, 2, 1)(left, right)
    if any(each is None for each in np.asarray(divided, dtype=object).reshape(-1)):
        raise ValueError("not a whole number for every size")
    return divided


def _whole_quotient(left: Expression, right: Expression) -> Expression | None:
    if isinstance(left, int) and isinstance(right, int):
        return None if not right else int(left / right) if abs(left) < 1 << 50 else None
    return sizes.quotient(left, right)


def _remainder(left: Any, right: Any) -> Any:
    """Of numbers; it has the sign of the divisor, as Python's does."""
    divided = np.frompyfunc(_whole_remainder, 2, 1)(left, right)
    if any(each is None for each in np.asarray(divided, dtype=object).reshape(-1)):
        raise ValueError("not a number")
    return divided


def _whole_remainder(left: Expression, right: Expression) -> int | None:
    return left % right if isinstance(left, int) and isinstance(right, int) and right else None


def _modulo(facts: Facts, node: ir.Node) -> Integers | None:
    rule = _arithmetic(_remainder, _no_ramps)
    return None if attribute(node, "fmod", 0) else rule(facts, node)


def _extreme(choose: Callable[..., Any], over: Callable[..., Any]) -> Rule:
    def pick(left: Expression, right: Expression) -> Expression:
        if isinstance(left, int) and isinstance(right, int):
            return choose(left, right)
        return sizes.plain(over(left, right))

    def rule(facts: Facts, node: ir.Node) -> Integers | None:
        arrays = [_array(facts, node, place) for place in range(len(node.inputs))]
        result = arrays[0]
        for other in arrays[1:]:
            if result is None or other is None:
                return None
            result = np.frompyfunc(pick, 2, 1)(result, other)
        return None if result is None else _simplified(np.asarray(result, dtype=object))

    return rule


def _negate(facts: Facts, node: ir.Node) -> Integers | None:
    array = _array(facts, node, 0)
    return None if array is None else _simplified(np.asarray(-array, dtype=object))


def _product_over(facts: Facts, node: ir.Node) -> Integers | None:
    array = _array(facts, node, 0)
    whole = array is not None and (
        numbers_at(facts, node, 1, "axes") in (None, [0], [-1]) and array.ndim == 1
    )
    if array is None or not whole:
        return None
    total = sizes.product(list(array))
    return entries([total]) if attribute(node, "keepdims", 1) else Entries(_single(total))


# Truths


def _compared(decide: Callable[[Expression], bool | None]) -> Rule:
    def rule(facts: Facts, node: ir.Node) -> Integers | None:
        left, right = _array(facts, node, 0), _array(facts, node, 1)
        if left is None or right is None:
            return None
        made = np.frompyfunc(lambda one, other: _decided(decide, one, other), 2, 1)(left, right)
        made = np.asarray(made, dtype=object)
        return None if any(each is None for each in made.reshape(-1)) else Entries(made)

    return rule


def _decided(
    decide: Callable[[Expression], bool | None], left: Expression, right: Expression
) -> bool | None:
    if isinstance(left, bool) or isinstance(right, bool):
        return None
    return decide(sizes.difference(left, right))


def _is_zero(difference: Expression) -> bool | None:
    if isinstance(difference, int):
        return difference == 0
    return False if difference.is_positive or difference.is_negative else None


def _is_positive(difference: Expression) -> bool | None:
    if isinstance(difference, int):
        return difference > 0
    return True if difference.is_positive else False if difference.is_nonpositive else None


def _is_not_negative(difference: Expression) -> bool | None:
    if isinstance(difference, int):
        return difference >= 0
    return True if difference.is_nonnegative else False if difference.is_negative else None


def _not(facts: Facts, node: ir.Node) -> Integers | None:
    array = _array(facts, node, 0)
    if array is None:
        return None
    return from_array(np.array([not each for each in array.reshape(-1)]).reshape(array.shape))


def _logical(combine: Callable[[Any, Any], Any]) -> Rule:
    def rule(facts: Facts, node: ir.Node) -> Integers | None:
        left, right = _array(facts, node, 0), _array(facts, node, 1)
        if left is None or right is None:
            return None
        return Entries(np.asarray(np.frompyfunc(combine, 2, 1)(left, right), dtype=object))

    return rule


def _where(facts: Facts, node: ir.Node) -> Integers | None:
    condition, chosen, other = (_array(facts, node, place) for place in range(3))
    if condition is None or chosen is None or other is None:
        return None
    if not all(isinstance(each, (bool, np.bool_)) for each in condition.reshape(-1)):
        return None
    try:
        return _simplified(np.where(condition.astype(bool), chosen, other))
    except ValueError:
        return None


# Moves


def _same(facts: Facts, node: ir.Node) -> Integers | None:
    return _content(facts, node, 0)


def _cast(facts: Facts, node: ir.Node) -> Integers | None:
    """Between integer types; a truth becomes 0 or 1."""
    target = ir.DataType(attribute(node, "to", 1))
    content = _content(facts, node, 0)
    if content is None or not (target.is_integer() or target == ir.DataType.BOOL):
        return None
    if isinstance(content, Entries):
        truths = [isinstance(each, (bool, np.bool_)) for each in content.array.reshape(-1)]
        if any(truths):
            to_bool = target == ir.DataType.BOOL
            return content if to_bool else from_array(content.array.astype(np.int64))
    return None if target == ir.DataType.BOOL else content


def _gather(facts: Facts, node: ir.Node) -> Integers | None:
    data, index = _array(facts, node, 0), _array(facts, node, 1)
    if data is None or index is None or not data.ndim:
        return None
    if not all(isinstance(each, int) for each in index.reshape(-1)):
        return None
    try:
        taken = np.take(data, index.astype(np.int64), axis=attribute(node, "axis", 0))
    except (IndexError, ValueError):
        return None
    result = np.empty(np.shape(taken), dtype=object)
    result[...] = taken
    return Entries(result)


def _concat(facts: Facts, node: ir.Node) -> Integers | None:
    arrays = [_array(facts, node, place) for place in range(len(node.inputs))]
    if all(array is not None for array in arrays):
        try:
            joined = np.concatenate(
                [a for a in arrays if a is not None], axis=attribute(node, "axis")
            )
        except ValueError:
            return None
        return Entries(joined) if joined.size <= MOST_ENTRIES else _columns(facts, node)
    return _columns(facts, node)


def _columns(facts: Facts, node: ir.Node) -> Integers | None:
    """Coordinates put side by side: operands with one place on the last axis."""
    ramps = []
    for place in range(len(node.inputs)):
        shape = shape_at(facts, node, place)
        if not shape or shape[-1] != 1:
            return None
        if axis_of(attribute(node, "axis", 0), len(shape)) != len(shape) - 1:
            return None
        ramp = as_ramp(_content(facts, node, place), len(shape))
        if ramp is None:
            return None
        ramps.append(Ramp(ramp.start, ramp.steps[:-1]))
    return Columns(tuple(ramps))


def _reshaped(facts: Facts, node: ir.Node) -> Integers | None:
    """Reshape, Squeeze and Unsqueeze: entries in their order; of ramps, axes of size one only."""
    content, shape = _content(facts, node, 0), facts.shape(node.outputs[0])
    before = shape_at(facts, node, 0)
    if content is None or shape is None or before is None:
        return None
    if isinstance(content, Entries):
        if not all(isinstance(size, int) for size in shape):
            return None
        if int(np.prod(shape)) != content.array.size:
            return None
        return Entries(content.array.reshape(shape))
    if isinstance(content, Columns):
        return None
    kept = [(size, step) for size, step in zip(before, content.steps) if size != 1]
    wide = [size for size in shape if size != 1]
    if len(kept) != len(wide) or not all(sizes.same(a, b[0]) for a, b in zip(wide, kept)):
        return None
    steps = iter(step for _, step in kept)
    return Ramp(content.start, tuple(0 if size == 1 else next(steps) for size in shape))


def _expand(facts: Facts, node: ir.Node) -> Integers | None:
    shape, before = facts.shape(node.outputs[0]), shape_at(facts, node, 0)
    content = _content(facts, node, 0)
    if shape is None or before is None or content is None:
        return None
    fixed = all(isinstance(size, int) for size in shape)
    if isinstance(content, Entries) and fixed and math.prod(shape) <= MOST_ENTRIES:
        return Entries(np.broadcast_to(content.array, shape).copy())
    ramp = as_ramp(content, len(before))
    if ramp is None:
        return None
    steps = (0,) * (len(shape) - len(before)) + ramp.steps
    padded = (1,) * (len(shape) - len(before)) + tuple(before)
    return Ramp(ramp.start, tuple(0 if size == 1 else step for size, step in zip(padded, steps)))


def _transposed(facts: Facts, node: ir.Node) -> Integers | None:
    content, before = _content(facts, node, 0), shape_at(facts, node, 0)
    if content is None or before is None:
        return None
    order = attribute(node, "perm") or tuple(reversed(range(len(before))))
    if isinstance(content, Entries):
        return Entries(content.array.transpose(order))
    if isinstance(content, Ramp):
        return Ramp(content.start, tuple(content.steps[axis] for axis in order))
    return None


def _slice(facts: Facts, node: ir.Node) -> Integers | None:
    content, spans, before = (
        _content(facts, node, 0),
        spans_of(facts, node),
        shape_at(facts, node, 0),
    )
    if content is None or spans is None or before is None:
        return None
    if isinstance(content, Entries):
        bounds = [each for span in spans.values() for each in span]
        if not all(isinstance(each, int) for each in bounds):
            return None
        index = [slice(None)] * content.array.ndim
        for axis, (start, stop, step) in spans.items():
            stop = None if step and step < 0 and stop is not None and stop < -(1 << 30) else stop
            index[axis] = slice(start, stop, step)
        return Entries(content.array[tuple(index)])
    if isinstance(content, Columns):
        return None
    total = content.start
    for axis, (start, _, step) in spans.items():
        front = start is not None and (start == 0 or getattr(start, "is_nonnegative", start))
        if step != 1 or not front or (isinstance(start, int) and start < 0):
            return None
        total = total + start * content.steps[axis]
    return Ramp(sizes.plain(total), content.steps)


RULES: dict[tuple[str, str], Rule] = {
    ("", "Shape"): _shape,
    ("", "Size"): _size,
    ("", "Constant"): _constant,
    ("", "ConstantOfShape"): _filled,
    ("", "Range"): _range,
    ("", "Add"): _arithmetic(operator.add, _sum_of_ramps),
    ("", "Sub"): _arithmetic(operator.sub, _difference_of_ramps),
    ("", "Mul"): _arithmetic(operator.mul, _product_of_ramps),
    ("", "Div"): _arithmetic(_divide, _no_ramps),
    ("", "Mod"): _modulo,
    ("", "Min"): _extreme(min, sympy.Min),
    ("", "Max"): _extreme(max, sympy.Max),
    ("", "Neg"): _negate,
    ("", "ReduceProd"): _product_over,
    ("", "Equal"): _compared(_is_zero),
    ("", "Greater"): _compared(_is_positive),
    ("", "GreaterOrEqual"): _compared(_is_not_negative),
    ("", "Less"): _compared(lambda difference: _is_positive(-difference)),
    ("", "LessOrEqual"): _compared(lambda difference: _is_not_negative(-difference)),
    ("", "Not"): _not,
    ("", "And"): _logical(lambda left, right: bool(left and right)),
    ("", "Or"): _logical(lambda left, right: bool(left or right)),
    ("", "Where"): _where,
    ("", "Identity"): _same,
    ("", "Cast"): _cast,
    ("", "Gather"): _gather,
    ("", "Concat"): _concat,
    ("", "Reshape"): _reshaped,
    ("", "Squeeze"): _reshaped,
    ("", "Unsqueeze"): _reshaped,
    ("", "Flatten"): _reshaped,
    ("", "Expand"): _expand,
    ("", "Transpose"): _transposed,
    ("", "Slice"): _slice,
}
