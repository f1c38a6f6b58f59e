"""Indices that name each element's place on one axis, where they are the same in every call."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mla_opt.graphs import operations as op
from mla_opt.graphs.onnx import moves
from mla_opt.graphs.onnx.integers import Entries, as_ramp
from mla_opt.graphs.onnx.reading import OPAQUE, Facts, attribute, operand


def gather(facts: Facts, node: ir.Node) -> op.Operation:
    """``Gather``: places of one axis."""
    data, indices = operand(node, 0), operand(node, 1)
    if data is None or indices is None:
        return OPAQUE
    if not facts.is_constant(indices) and facts.integers(indices) is None:
        return OPAQUE
    move = moves.move_of(facts, node)
    if isinstance(move, str):
        return op.Layout((data,), None, None, move)
    return op.Layout((data,), None, move)


def gather_elements(facts: Facts, node: ir.Node) -> op.Operation:
    """``GatherElements``: along other axes from the front, as far as there are indices."""
    data, index = operand(node, 0), operand(node, 1)
    rank = None if data is None else facts.rank(data)
    if data is None or index is None or not rank:
        return OPAQUE
    axis = int(attribute(node, "axis", 0)) % rank
    in_order = _in_order(facts, index, axis, rank)
    if in_order is None:
        return OPAQUE
    axes = tuple((place, in_order or place != axis) for place in range(rank))
    return op.Layout((data,), None, op.Along(axes))


def gather_nd(facts: Facts, node: ir.Node) -> op.Operation:
    """``GatherND`` of one coordinate, that of the first axis which indices do not share."""
    data, index = operand(node, 0), operand(node, 1)
    shape = None if index is None else facts.shape(index)
    axis = int(attribute(node, "batch_dims", 0))
    if data is None or index is None or not shape or shape[-1] != 1 or len(shape) != axis + 2:
        return OPAQUE
    in_order = _in_order(facts, index, axis, axis + 2)
    if in_order is None:
        return OPAQUE
    return op.Layout((data,), None, op.Along(((axis, in_order),)))


def _in_order(facts: Facts, index: ir.Value, axis: int, rank: int) -> bool | None:
    """Whether indices count the places of an axis from 0 on; ``None``: they are others each call.

    Along all other axes they have to be the same.
    """
    content = facts.integers(index)
    ramp = as_ramp(content, rank)
    if ramp is not None:
        others = [step for place, step in enumerate(ramp.steps) if place != axis]
        if any(step != 0 for step in others):
            return None
        if not all(isinstance(number, int) for number in (ramp.start, ramp.steps[axis])):
            return None
        return bool(ramp.start == 0 and ramp.steps[axis] == 1)
    if isinstance(content, Entries) and content.array.ndim == rank:
        return False if _alike_beside(content, axis) else None
    return _in_order_before(facts, index, axis, rank)


def _alike_beside(content: Entries, axis: int) -> bool:
    """Whether stored numbers are the same along all axes but one."""
    array = np.moveaxis(content.array, axis, 0)
    if not array.size or not all(isinstance(number, int) for number in array.reshape(-1)):
        return False
    rows = array.reshape(len(array), -1)
    return bool((rows == rows[:, :1]).all())


def _in_order_before(facts: Facts, index: ir.Value, axis: int, rank: int) -> bool | None:
    """The same of what indices repeat along axes of size one."""
    node = index.producer()
    before = None if node is None or node.domain or node.op_type != "Expand" else node.inputs[0]
    own = None if before is None else facts.rank(before)
    if before is None or own is None or axis < rank - own or own > rank:
        return None
    shape, place = facts.shape(before), axis - (rank - own)
    after = facts.shape(index)
    if shape is None or after is None or shape[place] != after[axis]:
        return None
    return _in_order(facts, before, place, own)
