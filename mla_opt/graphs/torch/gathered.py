"""Operators that take places of an axis by stored indices."""

from __future__ import annotations

import torch
from torch import fx

from mla_opt.graphs import operations as op
from mla_opt.graphs.torch.lifted_program import symbolic_shape
from mla_opt.graphs.torch.reading import (
    OPAQUE,
    Facts,
    from_end,
    moved_by,
    operand,
    operator_name,
    rank_of,
    tensor_of,
)


def index_select(facts: Facts, node: fx.Node) -> op.Operation:
    """Places of one axis."""
    data, index = tensor_of(operand(node, 0)), tensor_of(operand(node, 2, "index"))
    if data is None or index is None or not facts.is_constant(index):
        return OPAQUE
    return moved_by(node, data)


def indexed(facts: Facts, node: fx.Node) -> op.Operation:
    """Places of an axis by stored numbers; a mask would make a number of them."""
    data, indices = tensor_of(operand(node, 0)), operand(node, 1, "indices") or ()
    given = [tensor_of(index) for index in indices if index is not None]
    if data is None or len(given) != 1 or given[0] is None or not facts.is_constant(given[0]):
        return OPAQUE
    whole = given[0].meta["val"].dtype not in (torch.bool, torch.uint8)
    return moved_by(node, data) if whole and rank_of(given[0]) < 2 else OPAQUE


def gather(facts: Facts, node: fx.Node) -> op.Operation:
    """By a stored index of one axis, which is repeated along all others."""
    data, index = tensor_of(operand(node, 0)), tensor_of(operand(node, 2, "index"))
    if data is None or index is None:
        return OPAQUE
    if operator_name(index) in ("expand", "broadcast_to"):
        index = tensor_of(operand(index, 0)) or index
    shape, rank = symbolic_shape(index) or (), rank_of(data)
    axis = len(shape) + from_end(data, operand(node, 1, "dim")) if rank else 0
    alone = all(size == 1 for place, size in enumerate(shape) if place != axis)
    return moved_by(node, data) if alone and facts.is_constant(index) else OPAQUE
