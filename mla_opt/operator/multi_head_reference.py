"""``MultiHeadLatentAttention`` in NumPy float64: the definition that every other one meets.

Written to be read next to :mod:`mla_opt.operator.multi_head`; nothing here is fast. It is computed
absorbed, by the definition of ``LatentAttention``; ``tests/operator`` has it expanded once more.
"""

from __future__ import annotations

import numpy as np

from mla_opt.errors import InputError
from mla_opt.operator.kv_b import PLAIN, AnyArray, Array, Storage, numbers
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE
from mla_opt.operator.reference import LatentAttentionOutputs, latent_attention


def multi_head_latent_attention(
    query: AnyArray,
    kv_b: AnyArray,
    latent: AnyArray | None = None,
    cache: AnyArray | None = None,
    past_len: AnyArray | None = None,
    bias: AnyArray | None = None,
    sink: AnyArray | None = None,
    rope_cache: AnyArray | None = None,
    kv_b_scales: AnyArray | None = None,
    kv_b_zero_points: AnyArray | None = None,
    kv_b_factors: AnyArray | None = None,
    *,
    scale: float,
    kv_lora_rank: int,
    qk_nope_head_dim: int,
    v_head_dim: int,
    causal: bool = False,
    storage: Storage = PLAIN,
) -> LatentAttentionOutputs:
    """Attend from the queries of all heads to latent rows; everything is computed in float64."""
    weights = numbers(storage, kv_b, kv_b_scales, kv_b_zero_points, kv_lora_rank)
    w_uk, w_uv = _by_head(query, weights, qk_nope_head_dim, v_head_dim)
    if kv_b_factors is not None:
        of_keys, of_values = _factors(kv_b_factors, kv_lora_rank)
        w_uk, w_uv = w_uk * of_keys, w_uv * of_values
    output, *caches = latent_attention(
        absorbed_query(query, w_uk),
        latent,
        cache,
        past_len,
        bias,
        sink,
        rope_cache,
        scale=scale,
        kv_lora_rank=kv_lora_rank,
        causal=causal,
    )
    return LatentAttentionOutputs(output @ w_uv.swapaxes(-1, -2), *caches)


def absorbed_query(query: AnyArray, w_uk: Array) -> Array:
    """Return ``[query_nope @ W_UK | query_rope]``, ``[B, H, S, C+R]``; ``w_uk`` is [H, N, C]."""
    nope = w_uk.shape[1]
    wide = query.astype(np.float64)
    return np.concatenate([wide[..., :nope] @ w_uk, wide[..., nope:]], axis=-1)


def _factors(kv_b_factors: AnyArray, columns: int) -> Array:
    if kv_b_factors.shape != (2, columns):
        raise InputError(
            f"kv_b_factors has shape {list(kv_b_factors.shape)}, expected {[2, columns]}"
        )
    return kv_b_factors.astype(np.float64)


def _by_head(
    query: AnyArray, weights: Array, qk_nope_head_dim: int, v_head_dim: int
) -> tuple[Array, Array]:
    """Return ``W_UK [H, N, C]`` and ``W_UV^T [H, V, C]``."""
    if query.ndim != 4:
        raise InputError(f"{MULTI_HEAD_OP_TYPE}: query has rank {query.ndim}, expected 4")
    heads, width = query.shape[1], query.shape[3]
    if not 0 <= qk_nope_head_dim <= width:
        raise InputError(
            f"{MULTI_HEAD_OP_TYPE}: qk_nope_head_dim is {qk_nope_head_dim}, query has width {width}"
        )
    rows = heads * (qk_nope_head_dim + v_head_dim)
    if weights.shape[0] != rows:
        raise InputError(f"{MULTI_HEAD_OP_TYPE}: kv_b has {weights.shape[0]} rows, expected {rows}")
    by_head = weights.reshape(heads, qk_nope_head_dim + v_head_dim, -1)
    return by_head[:, :qk_nope_head_dim], by_head[:, qk_nope_head_dim:]
