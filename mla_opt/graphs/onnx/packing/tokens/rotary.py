"""Rules of fused rotary embeddings: by positions of tokens, not by places in a call."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.packing.tokens.operands import (
    of_operand,
    operand_of,
    rank_of,
)
from mla_opt.graphs.onnx.packing.tokens.states import Along, MixedTokensError, State, TokenWalk


def rotated(walk: TokenWalk, node: ir.Node) -> State:
    """ONNX: caches of sines and cosines of each token, or positions of each token to look up."""
    return rotary(walk, node, caches=(1, 2), positions=3)


def rotated_by_positions(walk: TokenWalk, node: ir.Node) -> State:
    """ONNX Runtime's: positions of each token; a single position counts up from the first."""
    return rotary(walk, node, caches=(2, 3), positions=1)


def rotary(walk: TokenWalk, node: ir.Node, caches: Sequence[int], positions: int) -> State:
    """Positions, or sines and cosines, have to be those of each token."""
    along, rank = of_operand(walk, node, 0), rank_of(walk, operand_of(node, 0))
    by_token = [
        place for place in (*caches, positions) if of_operand(walk, node, place) == Along(1)
    ]
    if by_token not in ([positions], list(caches)) or along != Along(rank - 2):
        raise MixedTokensError("it rotates by the place in the call, not by positions of tokens")
    return along
