"""Rules of products: tokens are rows of one factor, and never summed over."""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs.onnx.packing.tokens.operands import (
    apart,
    of_operand,
    only_first,
    operand_of,
    rank_of,
)
from mla_opt.graphs.onnx.packing.tokens.states import Along, MixedTokensError, State, TokenWalk
from mla_opt.graphs.onnx.shape_rules.facts import attribute


def product(walk: TokenWalk, node: ir.Node) -> State:
    """MatMul and its like: tokens are rows, columns or batches of what they are multiplied with."""
    for place in range(2, len(node.inputs)):
        if of_operand(walk, node, place) is not None:
            raise MixedTokensError(f"operand {place} differs from token to token")
    if any(attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        raise MixedTokensError("it turns what it multiplies")
    left, right = operand_of(node, 0), operand_of(node, 1)
    ranks = rank_of(walk, left), rank_of(walk, right)
    rank, found = rank_of(walk, node.outputs[0]), set()
    of_left, of_right = walk.along(left), walk.along(right)
    if of_left is not None:
        if of_left.axis == ranks[0] - 1:
            raise MixedTokensError("it sums over tokens")
        missing = 1 if ranks[1] == 1 else 0
        found.add(Along(of_left.axis + rank + missing - ranks[0], of_left.inner))
    if of_right is not None:
        if of_right.axis == ranks[1] - 2 or min(ranks) < 2 or attribute(node, "transB", 0):
            raise MixedTokensError("it sums over tokens")
        found.add(Along(of_right.axis + rank - ranks[1], of_right.inner))
    if len(found) != 1:
        raise MixedTokensError("it multiplies tokens with each other")
    return found.pop()


def gemm(walk: TokenWalk, node: ir.Node) -> State:
    """Gemm, tokens being rows of its first operand."""
    third = of_operand(walk, node, 2)
    if of_operand(walk, node, 1) is not None or third not in (None, Along(0)):
        raise MixedTokensError("it multiplies tokens with each other")
    if of_operand(walk, node, 0) != Along(0) or attribute(node, "transA", 0):
        raise MixedTokensError("it sums over tokens")
    return Along(0)


def stored_product(walk: TokenWalk, node: ir.Node) -> State:
    """A product with a packed weight."""
    along = only_first(walk, node)
    apart(walk, node, along, [-1])
    return along


def einsum(walk: TokenWalk, node: ir.Node) -> State:
    """Einsum, tokens having one label that is not summed over."""
    terms, arrow, result = attribute(node, "equation", "").replace(" ", "").partition("->")
    letters = terms.split(",")
    labels = set()
    for place, term in enumerate(letters):
        along = of_operand(walk, node, place)
        if along is not None and (along.inner != 1 or "." in term):
            raise MixedTokensError("which axes it multiplies is not known")
        if along is not None:
            labels.add(term[along.axis])
    used = sum(label in term for term in letters for label in labels)
    tracked = sum(of_operand(walk, node, place) is not None for place in range(len(letters)))
    if not arrow or len(labels) != 1 or used != tracked or not labels <= set(result):
        raise MixedTokensError("it multiplies tokens with each other, or sums over them")
    return Along(result.index(labels.pop()))
