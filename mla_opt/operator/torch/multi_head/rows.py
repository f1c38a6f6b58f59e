"""The latent rows that a call attends to, and the keys and values of heads that are made of them.

keys = [c_kv @ W_UK^T | k_pe]          values = c_kv @ W_UV
"""

from __future__ import annotations

import torch
from torch import Tensor

from mla_opt.operator.torch.call import Caches
from mla_opt.operator.torch.multi_head.call import MultiHeadCall


def latent_parts(
    call: MultiHeadCall, caches: Caches, seen: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the first ``seen`` rows as ``c_kv [B, T, C]`` and ``k_pe [B, T, R]``."""
    cache, rope_cache = caches
    rows = call.attention.latent if cache is None else cache
    assert rows is not None
    parts = (rows,) if rope_cache is None else (rows, rope_cache)
    wide = [part[:, 0, :seen].to(dtype) for part in parts]
    if len(wide) == 2:
        return wide[0], wide[1]
    rank = call.kv_lora_rank
    return wide[0][..., :rank], wide[0][..., rank:]


def keys_and_values(
    c_kv: Tensor, k_pe: Tensor, weights: Tensor, nope: int
) -> tuple[Tensor, Tensor]:
    """Return keys ``[B, H, T, N+R]`` and values ``[B, H, T, V]`` of the heads of some weights.

    Args:
        c_kv: ``[B, T, C]``.
        k_pe: ``[B, T, R]``.
        weights: ``[H, N+V, C]``.
        nope: N.
    """
    heads, made, rank = weights.shape
    batch, seen, _ = c_kv.shape
    product = c_kv @ weights.reshape(heads * made, rank).mT
    by_head = product.view(batch, seen, heads, made).transpose(1, 2)
    of_all = k_pe.unsqueeze(1).expand(-1, heads, -1, -1)
    return torch.cat([by_head[..., :nope], of_all], dim=-1), by_head[..., nope:]
