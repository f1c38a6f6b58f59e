"""Rules of operators that look rows up, by tokens or in what is known of tokens."""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs.onnx.integers import as_ramp
from mla_opt.graphs.onnx.packing.tokens.operands import (
    apart,
    of_operand,
    only_first,
    operand_of,
    rank_of,
)
from mla_opt.graphs.onnx.packing.tokens.states import Along, MixedTokensError, State, TokenWalk
from mla_opt.graphs.onnx.shape_rules.facts import attribute, axis_of


def gathered(walk: TokenWalk, node: ir.Node) -> State:
    """Gather: rows by numbers of each token, or fixed places of what each token has."""
    data, index = operand_of(node, 0), operand_of(node, 1)
    axis = axis_of(attribute(node, "axis", 0), rank_of(walk, data)) or 0
    of_data = walk.along(data)
    if of_data is not None and of_data.axis == axis:
        return of_own(walk, of_data, index, axis)
    of_index = walk.along(index)
    if of_data is not None and of_index is not None:
        raise MixedTokensError("it looks up places of tokens by other tokens")
    if of_index is not None:
        return Along(of_index.axis + axis, of_index.inner)
    assert of_data is not None
    shift = rank_of(walk, index) - 1 if of_data.axis > axis else 0
    return Along(of_data.axis + shift, of_data.inner)


def of_own(walk: TokenWalk, of_data: Along, index: ir.Value, axis: int) -> State:
    """Tokens looked up by their own numbers, each as often as the others."""
    found = walk.by_shape(index)
    ramp = as_ramp(walk.graph.integers(index), rank_of(walk, index))
    if found is None or found.inner != 1 or of_data.inner != 1 or ramp is None or ramp.start != 0:
        raise MixedTokensError("it looks up tokens by numbers")
    steps = [1 if place == found.axis else 0 for place in range(len(ramp.steps))]
    if list(ramp.steps) != steps:
        raise MixedTokensError("it looks up other tokens")
    return Along(axis + found.axis)


def one_by_one(walk: TokenWalk, node: ir.Node) -> State:
    """GatherElements, ScatterElements: every operand has its tokens on the axis of the first."""
    states = {of_operand(walk, node, place) for place in range(len(node.inputs))}
    along = next(iter(states))
    if len(states) != 1 or along is None:
        raise MixedTokensError("its operands have tokens along different axes")
    apart(walk, node, along, [attribute(node, "axis", 0)])
    return along


def looked_up(walk: TokenWalk, node: ir.Node) -> State:
    """GatherND: rows of a stored table, by coordinates of each token."""
    data, index = operand_of(node, 0), operand_of(node, 1)
    along = walk.along(index)
    if walk.along(data) is not None or along is None or attribute(node, "batch_dims", 0):
        raise MixedTokensError("it looks up places of tokens by other tokens")
    if along.axis == rank_of(walk, index) - 1:
        raise MixedTokensError("its coordinates are tokens")
    return along


def one_hot(walk: TokenWalk, node: ir.Node) -> State:
    """OneHot: one axis more."""
    along = only_first(walk, node)
    axis = axis_of(attribute(node, "axis", -1), rank_of(walk, node.outputs[0]))
    behind = axis is not None and axis <= along.axis
    return Along(along.axis + behind, along.inner)
