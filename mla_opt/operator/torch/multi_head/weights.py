"""``W_UK`` and ``W_UV`` as tensors, in the bits that a model stores them in.

See :mod:`mla_opt.operator.kv_b` for what every storage means.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from mla_opt.operator.kv_b import Storage, ZeroPoints
from mla_opt.operator.torch.demands import check_rank, check_type, demand, refuse

_SCALES = (torch.float32, torch.float16, torch.bfloat16)
_SCALED = (
    torch.int8,
    torch.uint8,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float16,
    torch.bfloat16,
)


class Weights(NamedTuple):
    """The tensors, by the names of the operator's inputs, and how they are stored."""

    kv_b: Tensor
    kv_b_scales: Tensor | None
    kv_b_zero_points: Tensor | None
    kv_b_factors: Tensor | None
    storage: Storage


def make_weights(
    kv_b: Tensor,
    scales: Tensor | None,
    zero_points: Tensor | None,
    factors: Tensor | None,
    *,
    bits: int,
    block_size: int,
    block_rows: int,
) -> Weights:
    """Return what these tensors are.

    Raises:
        InputError: there is no such storage.
    """
    zeros: ZeroPoints = "none"
    if zero_points is not None:
        zeros = "packed" if bits and zero_points.dtype == torch.uint8 else "plain"
    storage = _storage(bits, block_size, block_rows, zeros)
    return Weights(kv_b, scales, zero_points, factors, storage)


@functools.cache
def _storage(bits: int, block_size: int, block_rows: int, zeros: ZeroPoints) -> Storage:
    return Storage(bits, block_size, block_rows, zeros)


def by_head(weights: Weights, heads: int, columns: int, nope: int, dtype: torch.dtype) -> Tensor:
    """Return W_UK and W_UV^T of every head, ``[H, N + V, columns]``; ``nope`` is N."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factors = weights.kv_b_factors
    if factors is None:
        return _numbers(weights, columns, dtype).view(heads, -1, columns)
    rows = _numbers(weights, columns, wide).view(heads, -1, columns)
    of_keys, of_values = factors.to(wide)
    return torch.cat([rows[:, :nope] * of_keys, rows[:, nope:] * of_values], dim=1).to(dtype)


def _numbers(weights: Weights, columns: int, dtype: torch.dtype) -> Tensor:
    """Return the numbers that ``kv_b`` stores, ``[H (N + V), columns]``."""
    storage, scales = weights.storage, weights.kv_b_scales
    if scales is None:
        return weights.kv_b.to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    codes = _unpacked(weights.kv_b, storage.bits) if storage.bits else weights.kv_b
    codes = codes[:, :columns].to(wide)
    zeros = _zeros(weights, scales.shape[1], wide)
    if zeros is not None:
        codes = codes - _spread(storage, zeros, codes)
    return (codes * _spread(storage, scales.to(wide), codes)).to(dtype)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Return the codes of rows of bytes, ``[rows, columns]``."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes: Tensor = (packed.flatten(1).unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(1)


def _zeros(weights: Weights, blocks: int, dtype: torch.dtype) -> Tensor | None:
    """Return a zero point for each scale; None: they are 0."""
    storage, zero_points = weights.storage, weights.kv_b_zero_points
    if zero_points is None:
        half = 2.0 ** (storage.bits - 1)
        return weights.kv_b.new_full((1, 1), half, dtype=dtype) if storage.bits else None
    if storage.zero_points == "packed":
        return _unpacked(zero_points, storage.bits)[:, :blocks].to(dtype)
    return zero_points.to(dtype)


def _spread(storage: Storage, of_blocks: Tensor, like: Tensor) -> Tensor:
    """Return the number of its block for every element of ``like``."""
    if of_blocks.shape == (1, 1):
        return of_blocks
    rows, columns = like.shape
    by_row = of_blocks.repeat_interleave(storage.block_rows, 0)[:rows]
    return by_row.repeat_interleave(storage.block_size, 1)[:, :columns]


def check_weights(weights: Weights, query: Tensor, rows_of_head: int, columns: int) -> None:
    """Refuse tensors that do not fit each other, or the query ``[B, H, S, N + R]``.

    Raises:
        InputError: one of wrong rank, size, type or device, or missing.
    """
    storage, rows = weights.storage, query.shape[1] * rows_of_head
    blocks = -(-columns // storage.block_size) if storage.block_size else 0
    packed = (blocks, storage.block_size * storage.bits // 8)
    _check("kv_b", weights.kv_b, query, (rows, *(packed if storage.bits else (columns,))))
    _check_types(weights, query)
    of_scales = (-(-rows // storage.block_rows), blocks)
    if weights.kv_b_scales is not None:
        _check("kv_b_scales", weights.kv_b_scales, query, of_scales)
    if weights.kv_b_zero_points is not None:
        of_bytes = (rows, -(-blocks * storage.bits // 8))
        shape = of_bytes if storage.zero_points == "packed" else of_scales
        _check("kv_b_zero_points", weights.kv_b_zero_points, query, shape)
    if weights.kv_b_factors is not None:
        _check("kv_b_factors", weights.kv_b_factors, query, (2, columns))


def _check(name: str, tensor: Tensor, query: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.device != query.device:
        refuse(f"{name} is on {tensor.device}, query on {query.device}")
    check_rank(name, tensor, len(shape))
    for axis, (own, size) in enumerate(zip(tensor.shape, shape)):
        _check_axis(name, axis, own, size)


def _check_axis(name: str, axis: int, own: int, size: int) -> None:
    demand(own == size, lambda: f"{name} has size {own} on axis {axis}, expected {size}")


def _check_types(weights: Weights, query: Tensor) -> None:
    storage, scales = weights.storage, weights.kv_b_scales
    check_type("kv_b_factors", weights.kv_b_factors, (torch.float32,))
    if storage.block_size == 0:
        if scales is not None:
            refuse("kv_b_scales is given, but block_size is 0")
        wide = (torch.float64,) if query.dtype == torch.float64 else ()
        check_type("kv_b", weights.kv_b, (*_SCALES, *wide))
        return
    if scales is None:
        refuse(f"kv_b_scales is missing, but block_size is {storage.block_size}")
    check_type("kv_b_scales", scales, _SCALES)
    check_type("kv_b", weights.kv_b, (torch.uint8,) if storage.bits else _SCALED)
    zeros = (torch.uint8, scales.dtype) if storage.bits else (weights.kv_b.dtype,)
    check_type("kv_b_zero_points", weights.kv_b_zero_points, zeros)
