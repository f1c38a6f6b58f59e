"""How many numbers the matrices and the cache of each form hold."""

from __future__ import annotations

from typing import Literal

from mla_opt.cost_model.forms import FOLDS_OUTPUT, FOLDS_QUERY, CostForm
from mla_opt.geometry import MlaGeometry
from mla_opt.sites import CacheFamily


def weight_count(geometry: MlaGeometry, form: CostForm) -> int:
    """Return how many numbers the matrices from the query latent to the output hold.

    W_UQ, W_UK, W_UV and W_O, or their products; the down-projections are the same in every form.
    """
    return _query_weights(geometry, form) + _output_weights(geometry, form)


def weight_bytes(geometry: MlaGeometry, form: CostForm, dtype_bytes: int) -> int:
    """Return :func:`weight_count` in bytes, ``dtype_bytes`` a number."""
    return dtype_bytes * weight_count(geometry, form)


def cache_bytes_per_token(
    geometry: MlaGeometry, family: CacheFamily | Literal["expanded"], dtype_bytes: int
) -> int:
    """Return the bytes one token takes in the KV cache of one attention.

    ``H (N + R + V)`` numbers when keys and values are cached expanded, ``C + R`` when the latent
    is, none without a cache.
    """
    if family == "none":
        return 0
    width = geometry.latent_width if family == "latent" else geometry.expanded_width
    return dtype_bytes * width


def query_width(geometry: MlaGeometry) -> int:
    """Return the width of what W_UQ multiplies; 0 if the graph does not tell."""
    return geometry.q_lora_rank or geometry.hidden_size or 0


def _query_weights(geometry: MlaGeometry, form: CostForm) -> int:
    per_head = geometry.latent_width if form in FOLDS_QUERY else geometry.qk_head_dim
    up = query_width(geometry) * geometry.num_heads * per_head
    return up if form in FOLDS_QUERY else up + w_uk(geometry)


def _output_weights(geometry: MlaGeometry, form: CostForm) -> int:
    per_head = geometry.kv_lora_rank if form in FOLDS_OUTPUT else geometry.v_head_dim
    out = geometry.num_heads * per_head * (geometry.hidden_size or 0)
    return out if form in FOLDS_OUTPUT else out + w_uv(geometry)


def w_uk(geometry: MlaGeometry) -> int:
    """Return how many numbers W_UK holds."""
    return geometry.num_heads * geometry.qk_nope_head_dim * geometry.kv_lora_rank


def w_uv(geometry: MlaGeometry) -> int:
    """Return how many numbers W_UV holds."""
    return geometry.num_heads * geometry.v_head_dim * geometry.kv_lora_rank
