"""``LatentAttention`` in NumPy float64: the definition that every other implementation meets.

Written to be read next to :mod:`mla_opt.operator.contract`; nothing here is fast.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.operator.contract import OP_TYPE
from mla_opt.operator.quantized_rows import (
    BFLOAT16,
    dequantize,
    is_codes,
    quantize,
    width_beside,
)

Array = npt.NDArray[np.float64]
AnyArray = npt.NDArray[np.generic]


class LatentAttentionOutputs(NamedTuple):
    """The outputs of the contract; None where the inputs call for none."""

    output: Array
    new_cache: Array | None = None
    new_rope_cache: Array | None = None


class _Rows(NamedTuple):
    """Latent rows [B, T, C+R], and how many of each sequence are valid [B]."""

    rows: Array
    valid: npt.NDArray[np.int64]


def latent_attention(
    query: AnyArray,
    latent: AnyArray | None = None,
    cache: AnyArray | None = None,
    past_len: AnyArray | None = None,
    bias: AnyArray | None = None,
    sink: AnyArray | None = None,
    rope_cache: AnyArray | None = None,
    *,
    scale: float,
    kv_lora_rank: int,
    causal: bool = False,
) -> LatentAttentionOutputs:
    """Attend from absorbed queries to latent rows; everything is computed in float64."""
    _check_query(query, kv_lora_rank)
    _check_sources(query, latent, cache, rope_cache, kv_lora_rank)
    _check_past_len(query, latent, cache, past_len)
    rope_dim = query.shape[3] - kv_lora_rank
    past = _packed(cache, rope_cache, rope_dim)
    seen, updated = _store(query.shape[0], _rounded(latent, cache), past, past_len)
    _check_sink(query, sink)
    scores = scale * (query.astype(np.float64) @ seen.rows[:, None].swapaxes(-1, -2))
    scores = scores + _bias(bias, scores.shape)
    scores = np.where(_allowed(scores.shape, seen.valid, causal), scores, -np.inf)
    output = _softmax(scores, sink) @ seen.rows[:, None, :, :kv_lora_rank]
    if _is_quantized(cache):
        return LatentAttentionOutputs(output, *_codes(latent, cache, rope_cache, past_len))
    return LatentAttentionOutputs(output, *_unpacked(updated, cache, rope_cache))


def _rounded(latent: AnyArray | None, cache: AnyArray | None) -> AnyArray | None:
    """Return the new rows as a cache of 8 or 16 bits would keep them."""
    if latent is not None and cache is not None and _is_quantized(cache):
        rank = cache.shape[3]
        return dequantize(*quantize(latent, rank, cache.dtype), latent.shape[3] - rank)
    if latent is None or cache is None or cache.dtype.itemsize >= latent.dtype.itemsize:
        return latent
    return latent.astype(cache.dtype)


def _is_quantized(cache: AnyArray | None) -> bool:
    return cache is not None and is_codes(cache.dtype)


def _codes(
    latent: AnyArray | None,
    cache: AnyArray | None,
    rope_cache: AnyArray | None,
    past_len: AnyArray | None,
) -> tuple[Array | None, Array | None]:
    """Return the new caches of quantized rows: codes, and what is beside them."""
    if latent is None or cache is None or rope_cache is None:
        return None, None
    new = quantize(latent, cache.shape[3], cache.dtype)
    olds = (part[:, 0].astype(np.float64) for part in (cache, rope_cache))
    stored = (_store(len(latent), rows, old, past_len)[1] for rows, old in zip(new, olds))
    codes, beside = (None if part is None else part[:, None] for part in stored)
    return codes, beside


def _packed(
    cache: AnyArray | None, rope_cache: AnyArray | None, qk_rope_head_dim: int
) -> Array | None:
    """Return the cache as [B, M, C+R]."""
    if cache is None:
        return None
    if rope_cache is not None and _is_quantized(cache):
        return dequantize(cache[:, 0], rope_cache[:, 0], qk_rope_head_dim)
    parts = [cache] if rope_cache is None else [cache, rope_cache]
    return np.concatenate([part[:, 0].astype(np.float64) for part in parts], axis=-1)


def _unpacked(
    updated: Array | None, cache: AnyArray | None, rope_cache: AnyArray | None
) -> tuple[Array | None, Array | None]:
    """Return the new caches in the layout of the old ones."""
    if updated is None or cache is None:
        return None, None
    packed = updated[:, None]
    if rope_cache is None:
        return packed, None
    return packed[..., : cache.shape[3]], packed[..., cache.shape[3] :]


def _store(
    batch: int, latent: AnyArray | None, past: Array | None, past_len: AnyArray | None
) -> tuple[_Rows, Array | None]:
    """Put the new rows behind the past ones; return the rows to attend to and the new cache."""
    new = None if latent is None else latent[:, 0].astype(np.float64)
    if past is not None and past_len is not None:
        return _store_in_place(new, past, past_len.astype(np.int64))
    rows = np.concatenate([part for part in (past, new) if part is not None], axis=1)
    valid = np.full(batch, rows.shape[1], np.int64)
    return _Rows(rows, valid), (None if past is None or new is None else rows)


def _store_in_place(
    new: Array | None, past: Array, past_len: npt.NDArray[np.int64]
) -> tuple[_Rows, Array | None]:
    """Write the new rows of each sequence at its own length."""
    length = 0 if new is None else new.shape[1]
    updated = past.copy()
    if new is not None:
        for target, rows, start in zip(updated, new, past_len):
            target[start : start + length] = rows
    valid = past_len + length
    unused = np.arange(past.shape[1]) >= valid[:, None]
    rows = np.where(unused[..., None], 0.0, updated)
    return _Rows(rows, valid), (None if new is None else updated)


def _bias(bias: AnyArray | None, shape: tuple[int, ...]) -> Array:
    """Return the additive bias; false becomes -inf."""
    if bias is None:
        return np.zeros(1)
    try:
        fits = bias.ndim >= 1 and np.broadcast_shapes(bias.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f"{OP_TYPE}: bias has shape {list(bias.shape)}, "
            f"which does not broadcast to {list(shape)}"
        )
    if bias.dtype == np.bool_:
        return np.where(bias, 0.0, -np.inf)
    return bias.astype(np.float64)


def _allowed(
    shape: tuple[int, ...], valid: npt.NDArray[np.int64], causal: bool
) -> npt.NDArray[np.bool_]:
    """Return which columns each row may see, [B, 1, S or 1, T]."""
    _, _, query_len, total_len = shape
    rows = np.arange(query_len) if causal else np.array([query_len - 1])
    last = valid[:, None] - query_len + rows
    return np.asarray(np.arange(total_len) <= last[:, None, :, None])


def _softmax(scores: Array, sink: AnyArray | None) -> Array:
    """Softmax over the last axis and the sink; zeros for a row of -inf only."""
    logit = np.array([-np.inf]) if sink is None else sink.astype(np.float64)
    extra = np.broadcast_to(logit[:, None, None], (*scores.shape[:-1], 1))
    top = np.maximum(scores.max(axis=-1, keepdims=True), extra)
    top = np.where(np.isneginf(top), 0.0, top)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True) + np.exp(extra - top)
    return weights / np.where(total == 0.0, 1.0, total)


def _check_query(query: AnyArray, kv_lora_rank: int) -> None:
    _check_rank("query", query, 4)
    if not 1 <= kv_lora_rank <= query.shape[3]:
        raise InputError(
            f"{OP_TYPE}: kv_lora_rank is {kv_lora_rank}, but query has width {query.shape[3]}"
        )


def _check_sources(
    query: AnyArray,
    latent: AnyArray | None,
    cache: AnyArray | None,
    rope_cache: AnyArray | None,
    kv_lora_rank: int,
) -> None:
    """Check everything that holds latent rows."""
    batch, width = query.shape[0], query.shape[3]
    if latent is None and cache is None:
        raise InputError(f"{OP_TYPE}: neither latent nor cache is given, so there are no keys")
    if latent is not None:
        _check_rows("latent", latent, batch, width)
    if cache is not None and rope_cache is not None and _is_even(query, cache):
        kv_lora_rank = width // 2
    if cache is not None:
        packed = rope_cache is None and not _is_quantized(cache)
        _check_rows("cache", cache, batch, width if packed else kv_lora_rank)
    rope_dim = width - kv_lora_rank
    if cache is not None and _is_quantized(cache):
        _check_quantized(latent, rope_cache)
        rope_dim = width_beside(kv_lora_rank, rope_dim)
    if rope_cache is not None:
        _check_rope_cache(rope_cache, cache, batch, rope_dim)
    if sum(source.shape[2] for source in (latent, cache) if source is not None) == 0:
        raise InputError(f"{OP_TYPE}: latent and cache have 0 rows; at least 1 is needed")


def _is_even(query: AnyArray, cache: AnyArray) -> bool:
    """Whether a cache, which is one of two, holds the first half of each row."""
    return 2 * cache.shape[-1] == query.shape[3] and not _is_quantized(cache)


def _check_quantized(latent: AnyArray | None, rope_cache: AnyArray | None) -> None:
    if rope_cache is None:
        raise InputError(f"{OP_TYPE}: rope_cache, which holds the scales of the cache, is missing")
    if rope_cache.dtype != BFLOAT16:
        raise InputError(
            f"{OP_TYPE}: rope_cache is {rope_cache.dtype}, expected bfloat16 beside codes"
        )
    if latent is not None and latent.dtype != np.float32:
        raise InputError(f"{OP_TYPE}: latent is {latent.dtype}, expected float32 beside codes")


def _check_rows(name: str, rows: AnyArray, batch: int, width: int) -> None:
    _check_rank(name, rows, 4)
    for axis, what, expected in ((0, "batch", batch), (1, "axis 1", 1), (3, "width", width)):
        if rows.shape[axis] != expected:
            raise InputError(
                f"{OP_TYPE}: {name} has {what} {rows.shape[axis]}, expected {expected}"
            )


def _check_rope_cache(rope_cache: AnyArray, cache: AnyArray | None, batch: int, width: int) -> None:
    if cache is None:
        raise InputError(f"{OP_TYPE}: rope_cache is given without cache, its other half")
    if width == 0:
        raise InputError(
            f"{OP_TYPE}: rope_cache is given, but query has 0 dims beyond kv_lora_rank; at least 1"
        )
    _check_rows("rope_cache", rope_cache, batch, width)
    if rope_cache.shape[2] != cache.shape[2]:
        raise InputError(
            f"{OP_TYPE}: rope_cache has {rope_cache.shape[2]} rows, cache has {cache.shape[2]}"
        )


def _check_past_len(
    query: AnyArray, latent: AnyArray | None, cache: AnyArray | None, past_len: AnyArray | None
) -> None:
    if past_len is None:
        return
    if cache is None:
        raise InputError(f"{OP_TYPE}: past_len is given without the cache it counts rows of")
    _check_vector("past_len", past_len, query.shape[0])
    new = 0 if latent is None else latent.shape[2]
    for sequence, past in enumerate(past_len.astype(np.int64)):
        if not 0 <= past <= cache.shape[2] - new:
            raise InputError(
                f"{OP_TYPE}: past_len[{sequence}] is {past}; cache has {cache.shape[2]} rows, "
                f"and {new} are to be added"
            )


def _check_sink(query: AnyArray, sink: AnyArray | None) -> None:
    if sink is not None:
        _check_vector("sink", sink, query.shape[1])


def _check_vector(name: str, value: AnyArray, size: int) -> None:
    _check_rank(name, value, 1)
    if value.shape[0] != size:
        raise InputError(f"{OP_TYPE}: {name} has {value.shape[0]} elements, expected {size}")


def _check_rank(name: str, value: AnyArray, rank: int) -> None:
    if value.ndim != rank:
        raise InputError(f"{OP_TYPE}: {name} has rank {value.ndim}, expected {rank}")
