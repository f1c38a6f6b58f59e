"""What rules ask of the operands of a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.packing.tokens.states import Along, MixedTokensError, State, TokenWalk
from mla_opt.graphs.onnx.shape_rules.facts import axis_of, operand
from mla_opt.graphs.sizes import Expression

Rule = Callable[[TokenWalk, ir.Node], State]
"""What a node makes of values of tokens. Raises `MixedTokensError`."""


def operand_of(node: ir.Node, place: int) -> ir.Value:
    """An operand that has to be there."""
    value = operand(node, place)
    if value is None:
        raise MixedTokensError("an operand is missing")
    return value


def of_operand(walk: TokenWalk, node: ir.Node, place: int) -> Along | None:
    """The tokens of an operand; ``None`` where it has none, or is absent."""
    value = operand(node, place)
    return None if value is None else walk.along(value)


def only_first(walk: TokenWalk, node: ir.Node, counts: Sequence[int] = ()) -> Along:
    """The tokens of the first operand; the others are the same for all, or ``counts``."""
    for place in range(1, len(node.inputs)):
        if place not in counts and of_operand(walk, node, place) is not None:
            raise MixedTokensError(f"operand {place} differs from token to token")
    first = of_operand(walk, node, 0)
    if first is None:
        raise MixedTokensError("what it reads of tokens is not its first operand")
    return first


def rank_of(walk: TokenWalk, value: ir.Value) -> int:
    """Number of axes."""
    return len(walk.shape(value))


def broadcast(walk: TokenWalk, node: ir.Node, places: Sequence[int]) -> Along:
    """Operands that are broadcast to the result: those with tokens have them on one axis."""
    rank, found = rank_of(walk, node.outputs[0]), set()
    for place in places:
        value = operand(node, place)
        along = None if value is None else walk.along(value)
        if value is not None and along is not None:
            found.add(Along(along.axis + rank - rank_of(walk, value), along.inner))
    if len(found) != 1:
        raise MixedTokensError("its operands have tokens along different axes")
    (along,) = found
    return along


def apart(walk: TokenWalk, node: ir.Node, along: Along, axes: Sequence[Expression]) -> None:
    """Check that axes of the first operand are not that of the tokens."""
    rank = rank_of(walk, operand_of(node, 0))
    places = [axis_of(axis, rank) if isinstance(axis, int) else None for axis in axes]
    if None in places or along.axis in places:
        raise MixedTokensError("it works along the axis of the tokens")
