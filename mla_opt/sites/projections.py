"""The projections beside a latent attention, with its matrices multiplied into them."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.handles import Float64, Value
from mla_opt.sites.layout import Layout


@dataclass(frozen=True, slots=True)
class QueryProjection:
    """``query_latent = source @ weight``, ``weight [X, H C]``.

    ``layout`` says which axes of ``source`` are sequences, tokens and its width. ``rope`` is the
    raw rotary part of the query (before the embedding), which is made anew by
    ``rope_weight [X, H R]`` so that nothing reads the original projection any more.
    """

    source: Value
    layout: Layout
    weight: Float64
    rope: Value | None
    rope_weight: Float64 | None


@dataclass(frozen=True, slots=True)
class OutputProjection:
    """``result = latent_output @ weight``, ``weight [H C, E]``; ``result`` is what it replaces.

    ``layout`` says which axes of ``result`` are sequences, tokens and E.
    """

    weight: Float64
    result: Value
    layout: Layout
