"""Latent rows of 8 bits: codes with scales, and what is kept beside them.

| tensor | shape | type | |
|---|---|---|---|
| ``cache`` | [B, 1, M, C] | int8, or float8e4m3fn | codes of ``c_kv`` |
| ``rope_cache`` | [B, 1, M, W] | bfloat16 | ``k_pe``, the scales, and zeros |

C columns have ``G = ceil(C / 128)`` scales, one for each block of 128. ``W`` is ``R + G``, rounded
up to a multiple of 8, so that each row of both tensors begins at 16 bytes where C does: GPUs load
them as they are. DeepSeek's rows (C 512, R 64) take 512 + 144 = 656 bytes, in float32 2304.

A block of a new row is written with

    scale = bfloat16(max |x| / q)          q = 127, or 448: the largest code
    code  = clip(x / scale, -q, q)         rounded to the type of the codes

in float32, each step to the nearest number and of two to the even one. Where the scale is 0 the
codes are. ``k_pe`` is rounded to bfloat16. What is read is ``code * scale``, which float32 holds
exactly: scales have 8 bits of significand, codes at most 7. That is why a scale is bfloat16; since
codes are made with the rounded scale, its rounding costs them nothing but 0.4 % of their range. A
number of a new row that is not finite has no code.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError

Codes = Literal["int8", "float8_e4m3fn"]
"""Types of codes, in NumPy's words."""

CODES_PER_SCALE = 128
WIDTH_STEP = 8
LARGEST_CODE: dict[str, float] = {"int8": 127.0, "float8_e4m3fn": 448.0}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

Array = npt.NDArray[Any]


def is_codes(dtype: npt.DTypeLike) -> bool:
    """Whether rows of this element type are codes."""
    return np.dtype(dtype).name in get_args(Codes)


def scale_count(kv_lora_rank: int) -> int:
    """G: scales of a row."""
    return -(-kv_lora_rank // CODES_PER_SCALE)


def width_beside(kv_lora_rank: int, qk_rope_head_dim: int) -> int:
    """W: the width of ``rope_cache``."""
    width = qk_rope_head_dim + scale_count(kv_lora_rank)
    return -(-width // WIDTH_STEP) * WIDTH_STEP


def row_bytes(kv_lora_rank: int, qk_rope_head_dim: int) -> int:
    """Bytes of a row in both tensors."""
    beside = BFLOAT16.itemsize * width_beside(kv_lora_rank, qk_rope_head_dim)
    return int(kv_lora_rank + beside)


def quantize(rows: Array, kv_lora_rank: int, codes: npt.DTypeLike) -> tuple[Array, Array]:
    """Return rows ``[..., C+R]`` as both tensors keep them: ``[..., C]`` and ``[..., W]``.

    Raises:
        InputError: a number is not finite.
    """
    wide = rows.astype(np.float32)
    if not np.isfinite(wide).all():
        raise InputError("a latent row that is not finite cannot be kept in 8 bits")
    kind = np.dtype(codes)
    c_kv, k_pe = wide[..., :kv_lora_rank], wide[..., kv_lora_rank:]
    scales = _scales(c_kv, LARGEST_CODE[kind.name])
    beside = np.zeros((*rows.shape[:-1], width_beside(kv_lora_rank, k_pe.shape[-1])), BFLOAT16)
    beside[..., : k_pe.shape[-1]] = k_pe
    beside[..., k_pe.shape[-1] : k_pe.shape[-1] + scales.shape[-1]] = scales
    return _codes(c_kv, _by_column(scales, kv_lora_rank), kind), beside


def dequantize(codes: Array, beside: Array, qk_rope_head_dim: int) -> Array:
    """Return what both tensors hold, ``[..., C+R]`` in float64."""
    rank = codes.shape[-1]
    scales = beside[..., qk_rope_head_dim : qk_rope_head_dim + scale_count(rank)]
    c_kv = codes.astype(np.float64) * _by_column(scales, rank).astype(np.float64)
    return np.concatenate([c_kv, beside[..., :qk_rope_head_dim].astype(np.float64)], axis=-1)


def _scales(c_kv: Array, largest: float) -> Array:
    """Return the scale of each block, ``[..., G]`` bfloat16."""
    rank = c_kv.shape[-1]
    starts = np.arange(0, rank, CODES_PER_SCALE)
    most: Array = np.maximum.reduceat(np.abs(c_kv), starts, axis=-1)
    return (most / np.float32(largest)).astype(BFLOAT16)


def _by_column(scales: Array, kv_lora_rank: int) -> Array:
    return scales.repeat(CODES_PER_SCALE, axis=-1)[..., :kv_lora_rank]


def _codes(c_kv: Array, scales: Array, kind: np.dtype[Any]) -> Array:
    largest = np.float32(LARGEST_CODE[kind.name])
    steps = scales.astype(np.float32)
    codes = np.clip(c_kv / np.where(steps == 0, np.float32(1), steps), -largest, largest)
    codes = np.where(steps == 0, np.float32(0), codes)
    return (np.rint(codes) if kind.kind == "i" else codes).astype(kind)
