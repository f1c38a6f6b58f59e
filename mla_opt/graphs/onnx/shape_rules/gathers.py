"""Shapes of what is picked by indices or by conditions."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.shape_rules.facts import (
    Facts,
    Shape,
    attribute,
    axis_of,
    operand,
    replaced,
    shape_at,
)


def of_gather(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Gather``: the axis is replaced by those of the indices."""
    shape, indices = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if shape is None or indices is None:
        return ()
    axis = axis_of(attribute(node, "axis", 0), len(shape))
    return () if axis is None else ((*shape[:axis], *indices, *shape[axis + 1 :]),)


def of_gather_quantized(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """Rows of a packed matrix; bytes hold several numbers of the last axis each."""
    shape, indices = shape_at(facts, node, 0), shape_at(facts, node, 1)
    data = operand(node, 0)
    if not shape or indices is None or data is None:
        return ()
    if data.dtype == ir.DataType.UINT8:
        shape = (*shape[:-1], shape[-1] * (8 // attribute(node, "bits", 4)))
    axis = axis_of(attribute(node, "gather_axis", 0), len(shape))
    return () if axis is None else ((*shape[:axis], *indices, *shape[axis + 1 :]),)


def of_compressed(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """How much is kept depends on data."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    axis = attribute(node, "axis")
    place = None if axis is None else axis_of(axis, len(shape))
    return ((facts.unknown(),) if place is None else replaced(shape, place, facts.unknown()),)


def of_found(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``NonZero``: how many there are depends on data."""
    shape = shape_at(facts, node, 0)
    return () if shape is None else ((len(shape), facts.unknown()),)


def of_gather_nd(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``GatherND``: indices name the first axes that they do not share."""
    shape, indices = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if shape is None or not indices or not isinstance(indices[-1], int):
        return ()
    return ((*indices[:-1], *shape[attribute(node, "batch_dims", 0) + indices[-1] :]),)


def of_indices_like(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``GatherElements``: as the indices."""
    return (shape_at(facts, node, 1),)
