"""Rules of operators that work along some axes: never along that of the tokens."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.packing.tokens.operands import (
    Rule,
    apart,
    broadcast,
    of_operand,
    only_first,
    operand_of,
    rank_of,
)
from mla_opt.graphs.onnx.packing.tokens.states import Along, MixedTokensError, State, TokenWalk
from mla_opt.graphs.onnx.shape_rules.facts import attribute, axis_of, numbers_at
from mla_opt.graphs.sizes import Expression


def along_axis(default: int) -> Rule:
    """An operator along the axis of its attribute ``axis``, or by default this one."""

    def rule(walk: TokenWalk, node: ir.Node) -> State:
        along = only_first(walk, node)
        apart(walk, node, along, [attribute(node, "axis", default)])
        return along

    return rule


def normalized(walk: TokenWalk, node: ir.Node) -> State:
    """Normalization over all axes from ``axis`` on."""
    along = only_first(walk, node)
    first = axis_of(attribute(node, "axis", -1), rank_of(walk, operand_of(node, 0)))
    if first is None or along.axis >= first:
        raise MixedTokensError("it works along the axis of the tokens")
    return along


def skipped(walk: TokenWalk, node: ir.Node) -> State:
    """A sum of two, normalized over the last axis."""
    for place in range(2, len(node.inputs)):
        if of_operand(walk, node, place) is not None:
            raise MixedTokensError(f"operand {place} differs from token to token")
    along = broadcast(walk, node, (0, 1))
    apart(walk, node, along, [-1])
    return along


def cumulated(walk: TokenWalk, node: ir.Node) -> State:
    """CumSum."""
    along = only_first(walk, node)
    apart(walk, node, along, numbers_at(walk.graph.facts, node, 1) or [None])
    return along


def reduced(walk: TokenWalk, node: ir.Node) -> State:
    """Reductions over some axes."""
    along = only_first(walk, node)
    axes = numbers_at(walk.graph.facts, node, 1, "axes")
    if not axes:
        raise MixedTokensError("it works along all axes")
    apart(walk, node, along, axes)
    return without(walk, node, along, axes)


def best(walk: TokenWalk, node: ir.Node) -> State:
    """ArgMax, ArgMin."""
    along = only_first(walk, node)
    axes = [attribute(node, "axis", 0)]
    apart(walk, node, along, axes)
    return without(walk, node, along, axes)


def without(walk: TokenWalk, node: ir.Node, along: Along, axes: Sequence[Expression]) -> Along:
    """The axis of the tokens where reduced axes are dropped."""
    if attribute(node, "keepdims", 1):
        return along
    rank = rank_of(walk, operand_of(node, 0))
    before = [axis for axis in axes if (axis_of(axis, rank) or 0) < along.axis]
    return Along(along.axis - len(before), along.inner)
