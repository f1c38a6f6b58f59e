"""What a rewritten latent attention reads."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.handles import Value
from mla_opt.sites.weights import StoredWeights


@dataclass(slots=True)
class Operands:
    """Values of the graph that a site is rebuilt from.

    Attributes:
        query_nope: ``[B, H, S, N]``.
        query_rope: ``[B, H, S, R]``, or ``None`` when R is 0.
        weights: the matrices.
        bias: one additive or boolean tensor, broadcastable to ``[B, H, S, T]``.
        sink: ``[H]``.
        query_absorbed: ``[B, H, S, C]``, when W_UK is folded into the query's own projection.
        output_weight: ``[H C, E]``, when W_UV is folded into the output's projection.
    """

    query_nope: Value
    query_rope: Value | None
    weights: StoredWeights
    bias: Value | None
    sink: Value | None
    query_absorbed: Value | None = None
    output_weight: Value | None = None
