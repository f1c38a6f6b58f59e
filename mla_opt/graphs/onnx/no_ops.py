"""Which ONNX nodes return something that is there already, mostly their operand, at every size.

One small function per operator, found by its name. It says yes only where attributes, stored
operands or sizes prove it: sizes are expressions that hold at every size
(:mod:`mla_opt.graphs.onnx.symbols`), whether declared or read off the operand itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.concat_parts import part_of_concat
from mla_opt.graphs.onnx.integers import Integers, vector
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Array

TO_THE_END = np.iinfo(np.int32).max
"""What exporters write for the end of an axis is at least this."""


class Facts(Protocol):
    """What has to be known of values."""

    def small_constant(self, value: ir.Value) -> Array | None:
        """Content of a stored tensor that is small enough to be read while matching."""

    def rank(self, value: ir.Value) -> int | None:
        """Number of axes; ``None`` where it cannot be told."""

    def shape(self, value: ir.Value) -> tuple[Expression, ...] | None:
        """Sizes of a value."""

    def integers(self, value: ir.Value) -> Integers | None:
        """Content of an integer value."""

    def element_type(self, value: ir.Value) -> ir.DataType | None:
        """Element type; ``None`` where it cannot be told."""


Rule = Callable[[Facts, ir.Node], bool]


def unchanged(facts: Facts, node: ir.Node) -> ir.Value | None:
    """The operand that the node returns as it is; ``None`` where that is not proved."""
    if node.domain not in ("", "ai.onnx") or not node.inputs:
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    if node.op_type in PAIRS:
        return _undone(facts, node)
    if node.op_type in NEUTRAL:
        return _other_of_neutral(facts, node)
    rule = RULES.get(node.op_type)
    data = node.inputs[0]
    if rule is not None and data is not None and rule(facts, node):
        return data
    return _joined_part(facts, node) if node.op_type == "Slice" else None


# Rules by operator


def _always(facts: Facts, node: ir.Node) -> bool:
    return True


def _of_one(facts: Facts, node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _in_one(facts: Facts, node: ir.Node) -> bool:
    return len(node.outputs) == 1


def _cast(facts: Facts, node: ir.Node) -> bool:
    return facts.element_type(_data(node)) == ir.DataType(node.attributes["to"].as_int())


def _cast_like(facts: Facts, node: ir.Node) -> bool:
    like = _operand(node, 1)
    return like is not None and _same_type(facts, _data(node), like)


def _same_type(facts: Facts, one: ir.Value, other: ir.Value) -> bool:
    kind = facts.element_type(one)
    return kind is not None and kind == facts.element_type(other)


def _dropout(facts: Facts, node: ir.Node) -> bool:
    """In inference, which is what it does unless told otherwise."""
    trains = _operand(node, 2)
    if trains is None:
        return True
    content = facts.small_constant(trains)
    return content is not None and not content.any()


def _transpose(facts: Facts, node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    if order is None:
        return facts.rank(_data(node)) in (0, 1)
    return list(order.as_ints()) == sorted(order.as_ints())


def _reshape(facts: Facts, node: ir.Node) -> bool:
    """Every axis as long as before; one of them may be left for the runtime to tell (-1)."""
    wanted, own = _wanted(facts, _operand(node, 1)), facts.shape(_data(node))
    if wanted is None or own is None or len(wanted) != len(own):
        return False
    copies = not _flag(node, "allowzero")
    kept = [sizes.same(size, known) or (size == 0 and copies) for size, known in zip(wanted, own)]
    return all(kept) or (kept.count(False) == 1 and wanted[kept.index(False)] == -1)


def _expand(facts: Facts, node: ir.Node) -> bool:
    wanted, own = _wanted(facts, _operand(node, 1)), facts.shape(_data(node))
    if wanted is None or own is None or len(wanted) > len(own):
        return False
    last = own[len(own) - len(wanted) :]
    return all(size == 1 or sizes.same(size, known) for size, known in zip(wanted, last))


def _wanted(facts: Facts, value: ir.Value | None) -> list[Expression] | None:
    """The sizes that an integer vector holds."""
    return None if value is None else vector(facts.integers(value))


def _tile(facts: Facts, node: ir.Node) -> bool:
    return _holds_only(facts, _operand(node, 1), 1)


def _slice(facts: Facts, node: ir.Node) -> bool:
    """From the first element to the last of every axis that it names, one by one."""
    data = _data(node)
    starts, ends = (_operand(node, place) for place in (1, 2))
    if starts is None or ends is None or not _holds_only(facts, starts, 0):
        return False
    steps = _operand(node, 4)
    if steps is not None and not _holds_only(facts, steps, 1):
        return False
    last, own = _wanted(facts, ends), facts.shape(data)
    axes = None if own is None else _sliced_axes(facts, node, len(own))
    if last is None or own is None or axes is None or len(axes) != len(last):
        return False
    return all(_reaches_end(end, own[axis]) for end, axis in zip(last, axes))


def _joined_part(facts: Facts, node: ir.Node) -> ir.Value | None:
    """The operand of a Concat that is sliced out of it again."""
    concat, shape = _data(node).producer(), facts.shape(_data(node))
    axes = None if shape is None else _sliced_axes(facts, node, len(shape))
    starts, ends = (_wanted(facts, _operand(node, place)) for place in (1, 2))
    steps = _operand(node, 4)
    if concat is None or concat.op_type != "Concat" or concat.domain not in ("", "ai.onnx"):
        return None
    if shape is None or axes is None or len(axes) != 1 or starts is None or ends is None:
        return None
    joined = concat.attributes["axis"].as_int() % len(shape)
    if axes[0] != joined or not (steps is None or _holds_only(facts, steps, 1)):
        return None
    along = [None if each is None else facts.shape(each) for each in concat.inputs]
    known = [each[joined] for each in along if each is not None]
    if len(known) < len(along):
        return None
    end = shape[joined] if _reaches_end(ends[0], shape[joined]) else ends[0]
    return part_of_concat(concat, known, starts[0], end)


def _sliced_axes(facts: Facts, node: ir.Node, rank: int | None) -> tuple[int, ...] | None:
    """The axes that a Slice names; the first ones where it names none."""
    named, starts = _operand(node, 3), _operand(node, 1)
    if named is not None:
        return _axes(facts, named, rank)
    first = None if starts is None else facts.small_constant(starts)
    return None if first is None else tuple(range(first.size))


def _reaches_end(end: Expression, own: Expression) -> bool:
    if sizes.same(end, own):
        return True
    return isinstance(end, int) and end >= (own if isinstance(own, int) else TO_THE_END)


def _pad(facts: Facts, node: ir.Node) -> bool:
    return _holds_only(facts, _operand(node, 1), 0)


def _clip(facts: Facts, node: ir.Node) -> bool:
    bounded = any(name in node.attributes for name in ("min", "max"))
    return not bounded and not any(value is not None for value in node.inputs[1:])


def _flatten(facts: Facts, node: ir.Node) -> bool:
    axis = node.attributes.get("axis")
    return facts.rank(_data(node)) == 2 and (axis is None or axis.as_int() in (1, -1))


RULES: dict[str, Rule] = {
    "Identity": _always,
    "Concat": _of_one,
    "Sum": _of_one,
    "Max": _of_one,
    "Min": _of_one,
    "Mean": _of_one,
    "Split": _in_one,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "Slice": _slice,
    "Pad": _pad,
    "Clip": _clip,
    "Flatten": _flatten,
}


# Operators with a neutral operand

NEUTRAL: dict[str, tuple[float, tuple[int, ...]]] = {
    "Add": (0.0, (0, 1)),
    "Sub": (0.0, (1,)),
    "Mul": (1.0, (0, 1)),
    "Div": (1.0, (1,)),
    "Pow": (1.0, (1,)),
    "And": (True, (0, 1)),
    "Or": (False, (0, 1)),
}
"""The number, or the truth, that changes nothing, and the operands that may hold it."""


def _other_of_neutral(facts: Facts, node: ir.Node) -> ir.Value | None:
    number, places = NEUTRAL[node.op_type]
    for place in places:
        neutral, data = _operand(node, place), _operand(node, 1 - place)
        if neutral is None or data is None or not _holds_only(facts, neutral, number):
            continue
        if _broadcasts_nothing(facts, neutral, data):
            return data
    return None


def _broadcasts_nothing(facts: Facts, stored: ir.Value, data: ir.Value) -> bool:
    """Whether the result has the shape of ``data``, whatever that is."""
    content, own = facts.small_constant(stored), facts.shape(data)
    if content is None or (content.ndim and (own is None or content.ndim > len(own))):
        return False
    last = () if own is None else own[len(own) - content.ndim :]
    return all(size == 1 or sizes.same(size, known) for size, known in zip(content.shape, last))


# Operators that undo each other

PAIRS = {"Squeeze": "Unsqueeze", "Unsqueeze": "Squeeze"}


def _undone(facts: Facts, node: ir.Node) -> ir.Value | None:
    """What the node before this one was given, if one adds the axes that the other drops."""
    middle = _data(node)
    before = middle.producer()
    if before is None or before.op_type != PAIRS[node.op_type] or before.domain:
        return None
    rank = facts.rank(middle if node.op_type == "Squeeze" else node.outputs[0])
    added, dropped = (_axes_of(facts, each, rank) for each in (before, node))
    if added is None or dropped is None or sorted(added) != sorted(dropped):
        return None
    return before.inputs[0]


def _axes_of(facts: Facts, node: ir.Node, rank: int | None) -> tuple[int, ...] | None:
    """Axes of the wider side that a Squeeze or Unsqueeze names; ``None`` where it names none."""
    attribute = node.attributes.get("axes")
    if attribute is None:
        return _axes(facts, _operand(node, 1), rank)
    return _counted(attribute.as_ints(), rank)


def _axes(facts: Facts, value: ir.Value | None, rank: int | None) -> tuple[int, ...] | None:
    content = None if value is None else facts.small_constant(value)
    return None if content is None else _counted(content.reshape(-1).tolist(), rank)


def _counted(axes: Sequence[int], rank: int | None) -> tuple[int, ...] | None:
    """Axes counted from the first."""
    if rank is None and any(axis < 0 for axis in axes):
        return None
    return tuple(axis + (rank or 0) if axis < 0 else axis for axis in axes)


# What a node is given


def _operand(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _data(node: ir.Node) -> ir.Value:
    data = node.inputs[0]
    assert data is not None
    return data


def _flag(node: ir.Node, name: str) -> bool:
    attribute = node.attributes.get(name)
    return attribute is not None and bool(attribute.as_int())


def _holds_only(facts: Facts, value: ir.Value | None, number: float) -> bool:
    """Whether a stored tensor has no element but this number."""
    content = None if value is None else facts.small_constant(value)
    return content is not None and bool((content == number).all())
