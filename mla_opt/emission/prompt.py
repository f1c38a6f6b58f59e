"""A whole prompt into an empty buffer, in the form that TensorRT has a fused kernel for.

    c_kv --> @ W_UK^T --+
                        +-- concat --> keys   [B, H, S, N + R] --+
    k_pe --- heads -----+                                        |
    c_kv --> @ [W_UV | 0] -----------> values [B, H, S, N + R] --+--> Attention --> slice to V
    rows --> TensorScatter into the buffer

There is no past, so keys and values are made of the new rows alone. TensorRT fuses an attention
only where keys and values are equally wide, hence the zeros; and it repeats matrices that are
stacked by head for every sequence, hence the products with one matrix for all heads.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mla_opt.emission.absorbed import Emitted
from mla_opt.emission.attend import additive, attend, zero_where_blind
from mla_opt.emission.expanded import expanded_keys, expanded_values, latent_parts
from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Array, Value
from mla_opt.sites import LatentAttentionSite, Operands

FUSED_HEAD_DIM = 256
"""Widest head of TensorRT's fused attention, measured: 257 is refused."""

LOWEST_BIAS = -6e4
"""What a bias is at least: no score brings a key back from there, and float16 can hold it.

Masks hold float32's lowest number. In float16 that is -inf, and a query that sees nothing but -inf,
such as padding, makes NaN of its row, of the cache, and of whatever reads that.
"""


class TensorRTBuilder(Builder, Protocol):
    """A builder of graphs that TensorRT reads: ONNX from opset 24 on."""

    def constant_like(self, array: Array, like: Value, name: str) -> Value:
        """A stored tensor of another value's element type."""

    def fused_attention(
        self,
        query: Value,
        keys: Value,
        values: Value,
        *,
        scale: float,
        bias: Value | None,
        causal: bool,
        name: str,
    ) -> Value:
        """Attention of ``[B, H, S, D]`` to ``[B, H, T, D]`` in one operator."""

    def write_rows(self, buffer: Value, rows: Value, start: Value, name: str) -> Value:
        """The buffer ``[B, 1, M, X]`` with ``rows [B, 1, S, X]`` at ``start [B]``."""


def can_fuse(site: LatentAttentionSite) -> bool:
    """Whether TensorRT has a fused kernel for the site's expanded heads."""
    assert site.geometry is not None
    width = site.geometry.qk_head_dim
    return site.geometry.v_head_dim <= width <= FUSED_HEAD_DIM and site.core.sink is None


def emit_prompt(
    builder: TensorRTBuilder,
    site: LatentAttentionSite,
    operands: Operands,
    rows: Value,
    buffer: Value | None,
    start: Value,
) -> Emitted:
    """Emit one site for prompts; the output is ``[B, H, S, V]``.

    ``rows`` are the new latent rows ``[B, 1, S, C + R]``; they are written into ``buffer`` at
    ``start`` if one is given.
    """
    query = operands.query_nope
    if operands.query_rope is not None:
        query = builder.concat((query, operands.query_rope), 3, "query_expanded")
    make = _fused if can_fuse(site) else _decomposed
    output = make(builder, site, operands, query, *latent_parts(builder, site, (rows,)))
    if buffer is None:
        return Emitted(output)
    return Emitted(output, (builder.write_rows(buffer, rows, start, "new_cache"),))


def _fused(
    builder: TensorRTBuilder,
    site: LatentAttentionSite,
    operands: Operands,
    query: Value,
    latent: Value,
    rope: Value | None,
) -> Value:
    geometry, weights = site.geometry, site.weights
    assert geometry is not None and weights is not None
    missing = geometry.qk_head_dim - geometry.v_head_dim
    padded = np.pad(weights.w_uv, ((0, 0), (0, 0), (0, missing)))
    rows = builder.reshape(latent, builder.integers(0, -1, geometry.kv_lora_rank), "latent_rows")
    bias = None if operands.bias is None else additive(builder, operands.bias, query)
    output = builder.fused_attention(
        query,
        _keys(builder, operands, rows, weights.w_uk.swapaxes(1, 2), rope),
        _by_head(builder, operands, rows, padded, "values_padded"),
        scale=site.scale,
        bias=None if bias is None else _bounded(builder, bias),
        causal=site.core.causal,
        name="attention",
    )
    if missing:
        output = builder.slice(output, 0, geometry.v_head_dim, 3, "attention_values")
    if operands.weights.value_bias is not None:
        output = builder.add(output, operands.weights.value_bias, "attention_shifted")
    return output if bias is None else zero_where_blind(builder, output, bias)


def _bounded(builder: TensorRTBuilder, bias: Value) -> Value:
    lowest = builder.scalar_like(LOWEST_BIAS, bias, "lowest_bias")
    return builder.where(builder.greater(bias, lowest, "is_bounded"), bias, lowest, "bias_bounded")


def _keys(
    builder: TensorRTBuilder, operands: Operands, rows: Value, w_uk: Array, rope: Value | None
) -> Value:
    """Keys of all heads ``[B, H, S, N + R]``; ``w_uk [H, C, N]``."""
    nope = _by_head(builder, operands, rows, w_uk, "keys_nope")
    if rope is None:
        return nope
    heads = builder.integers(1, w_uk.shape[0], 1, 1)
    return builder.concat((nope, builder.expand(rope, heads, "keys_rope")), 3, "keys")


def _by_head(
    builder: TensorRTBuilder, operands: Operands, rows: Value, matrices: Array, name: str
) -> Value:
    """``rows [B, S, C]`` times ``matrices [H, C, X]``: ``[B, H, S, X]``."""
    heads, width, _ = matrices.shape
    flat = matrices.swapaxes(0, 1).reshape(width, -1)
    matrix = builder.constant_like(flat, operands.weights.w_uk, f"{name}_matrix")
    product = builder.matmul(rows, matrix, f"{name}_flat")
    split = builder.reshape(product, builder.integers(0, 0, heads, -1), f"{name}_split")
    return builder.transpose(split, (0, 2, 1, 3), name)


def _decomposed(
    builder: TensorRTBuilder,
    site: LatentAttentionSite,
    operands: Operands,
    query: Value,
    latent: Value,
    rope: Value | None,
) -> Value:
    return attend(
        builder,
        query,
        expanded_keys(builder, site, operands.weights, latent, rope),
        expanded_values(builder, operands.weights, latent),
        scale=site.scale,
        bias=operands.bias,
        sink=operands.sink,
        causal=site.core.causal,
    )
