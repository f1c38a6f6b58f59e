"""Rules of operators that move numbers: tokens stay whole, and in their order."""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.packing.tokens.operands import (
    apart,
    broadcast,
    only_first,
    operand_of,
    rank_of,
)
from mla_opt.graphs.onnx.packing.tokens.states import Along, MixedTokensError, State, TokenWalk
from mla_opt.graphs.onnx.shape_rules.facts import attribute, numbers_at, operand
from mla_opt.graphs.onnx.shape_rules.slices import spans_of


def transposed(walk: TokenWalk, node: ir.Node) -> State:
    """The axes in another order."""
    along = only_first(walk, node)
    rank = rank_of(walk, operand_of(node, 0))
    order = attribute(node, "perm") or tuple(reversed(range(rank)))
    return Along(list(order).index(along.axis), along.inner)


def regrouped(walk: TokenWalk, node: ir.Node) -> State:
    """Another shape: as many numbers in front of the tokens, and as many of each."""
    data, result = operand_of(node, 0), node.outputs[0]
    along, after = walk.along(data), walk.by_shape(result)
    if along is None or after is None:
        raise MixedTokensError("it folds tokens into another axis")
    before, behind = walk.shape(data), walk.shape(result)
    front = sizes.product(before[: along.axis]), sizes.product(behind[: after.axis])
    rest = (
        sizes.product((*before[along.axis + 1 :], along.inner)),
        sizes.product((*behind[after.axis + 1 :], after.inner)),
    )
    if not (sizes.same(*front) and sizes.same(*rest)):
        raise MixedTokensError("it cuts tokens apart")
    return after


def repeated(walk: TokenWalk, node: ir.Node) -> State:
    """Expand, Tile: what is the same for all tokens may be repeated for each."""
    data, result = operand_of(node, 0), node.outputs[0]
    along, after = walk.along(data), walk.by_shape(result)
    if along is None:
        return "same" if after is None else after
    shifted = Along(along.axis + rank_of(walk, result) - rank_of(walk, data), along.inner)
    if shifted != after:
        raise MixedTokensError("it repeats tokens")
    return shifted


def filled(walk: TokenWalk, node: ir.Node) -> State:
    """ConstantOfShape: the same for each token."""
    return walk.by_shape(node.outputs[0]) or "same"


def joined(walk: TokenWalk, node: ir.Node) -> State:
    """Concat, along another axis."""
    along = broadcast(walk, node, range(len(node.inputs)))
    apart(walk, node, along, [attribute(node, "axis", 0)])
    return along


def split(walk: TokenWalk, node: ir.Node) -> State:
    """Split, along another axis."""
    along = only_first(walk, node, counts=(1,))
    apart(walk, node, along, [attribute(node, "axis", 0)])
    return along


def sliced(walk: TokenWalk, node: ir.Node) -> State:
    """Slices along other axes, or of all tokens."""
    along, spans = only_first(walk, node, counts=(1, 2, 3, 4)), spans_of(walk.graph.facts, node)
    if spans is None:
        raise MixedTokensError("which axes it takes part of is not known")
    start, _, step = spans.get(along.axis, (0, None, 1))
    sizes_of = walk.shape(operand_of(node, 0))[along.axis], walk.shape(node.outputs[0])[along.axis]
    if start != 0 or step != 1 or not sizes.same(*sizes_of):
        raise MixedTokensError(
            "it takes some of the tokens, such as the last; export the model with all of them"
        )
    return along


def padded(walk: TokenWalk, node: ir.Node) -> State:
    """Pads along other axes."""
    along = only_first(walk, node, counts=(1,))
    pads, rank = numbers_at(walk.graph.facts, node, 1, "pads"), rank_of(walk, operand_of(node, 0))
    at = (along.axis, along.axis + rank)
    if operand(node, 3) is not None or pads is None or any(pads[each] != 0 for each in at):
        raise MixedTokensError("it pads along the axis of the tokens")
    return along
