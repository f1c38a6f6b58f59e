"""From how many new tokens on expanding is cheaper than absorbing."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from mla_opt.geometry import MlaGeometry
from mla_opt.sites import PrefillForm


@dataclass(frozen=True, slots=True)
class PrefillChoice:
    """The form to take for long queries, the query length where it changes, and why.

    ``crossover`` is the number of new tokens above which expanding is cheaper, for a context
    without bound; ``None`` when absorbing is never dearer.
    """

    form: PrefillForm
    crossover: float | None
    reason: str


def choose_prefill(
    geometry: MlaGeometry, *, total_len: int | None = None, always_short: bool = False
) -> PrefillChoice:
    """Choose the form for queries of any length.

    Args:
        geometry: the attention.
        total_len: the largest context, if one is known; without it the limit is used.
        always_short: true when the model takes one token a call, so no prefill exists.
    """
    limit = geometry.prefill_crossover if total_len is None else geometry.crossover_at(total_len)
    if limit == float("inf"):
        return PrefillChoice("absorbed", None, _never_dearer(geometry))
    if always_short:
        return PrefillChoice("absorbed", limit, "the model takes one token a call")
    reason = (
        f"expanding takes fewer operations from {round(limit)} new tokens on, "
        f"absorbing below: {_attention_ratio(geometry):.2f}x the operations per key"
    )
    return PrefillChoice("auto", limit, reason)


def expanded_from(geometry: MlaGeometry, form: PrefillForm) -> int:
    """New tokens from which on ``form`` expands, counting operations, however many rows there are.

    Not for ``absorbed``, which never does.
    """
    return 2 if form == "expanded" else ceil(geometry.prefill_crossover)


def _never_dearer(geometry: MlaGeometry) -> str:
    return (
        "absorbing never takes more operations: 2C <= N + V "
        f"({2 * geometry.kv_lora_rank} <= {geometry.qk_nope_head_dim + geometry.v_head_dim})"
    )


def _attention_ratio(geometry: MlaGeometry) -> float:
    absorbed = geometry.latent_width + geometry.kv_lora_rank
    return absorbed / (geometry.qk_head_dim + geometry.v_head_dim)
