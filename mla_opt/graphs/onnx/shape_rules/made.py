"""Shapes of what is made of nothing but attributes and integers."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.integers import number
from mla_opt.graphs.onnx.shape_rules.facts import (
    Facts,
    Shape,
    attribute,
    numbers_at,
    operand,
    shape_at,
    unknown_sizes,
)


def of_constant(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Constant``: as its attribute."""
    for name, single in (("value_int", ()), ("value_float", ()), ("value_string", ())):
        if name in node.attributes:
            return (single,)
    for name in ("value_ints", "value_floats", "value_strings"):
        if name in node.attributes:
            return ((len(node.attributes[name].value),),)
    tensor = attribute(node, "value")
    return () if tensor is None else (tuple(int(size) for size in tensor.shape),)


def of_shape(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Shape``: as many numbers as axes."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ((facts.unknown(),),)
    return ((len(shape[attribute(node, "start", 0) : attribute(node, "end")]),),)


def of_scalar(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """One number."""
    return ((),)


def of_filled(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``ConstantOfShape``: as asked."""
    wanted = numbers_at(facts, node, 0)
    if wanted is not None:
        return (tuple(wanted),)
    return unknown_sizes(facts, shape_at(facts, node, 0))


def of_range(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Range``: as many numbers as steps."""
    start, limit, delta = (
        None if value is None else number(facts.integers(value))
        for value in (operand(node, place) for place in range(3))
    )
    if start is None or limit is None or delta != 1:
        return ((facts.unknown(),),)
    size = sizes.difference(limit, start)
    if isinstance(size, int):
        return ((max(size, 0),),)
    return ((size if size.is_nonnegative else facts.unknown(),),)
