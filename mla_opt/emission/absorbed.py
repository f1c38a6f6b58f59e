"""The absorbed form: attention over latent rows with one shared head.

query_nope @ W_UK --+
                    +-- concat --> LatentAttention(rows) --> @ W_UV --> output [B, H, S, V]
query_rope ---------+
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mla_opt.emission.attend import additive, zero_where_blind
from mla_opt.emission.rows import Rows
from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value
from mla_opt.sites import LatentAttentionSite, Operands

HeadProduct = Callable[[Builder, Value, Value, str], Value]
"""Emits ``[B, H, S, X]`` times ``[H, X, Y]``, under a name: ``[B, H, S, Y]``."""


def batched(builder: Builder, rows: Value, matrices: Value, name: str) -> Value:
    """One product that repeats the matrices for every sequence: ONNX's own broadcasting."""
    return builder.matmul(rows, matrices, name)


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a form made: the attention's output, and its caches with the new rows in them."""

    output: Value
    caches: tuple[Value, ...] = ()

    def values(self) -> tuple[Value, ...]:
        """All of it, the output first."""
        return (self.output, *self.caches)


def emit_absorbed(
    builder: Builder,
    site: LatentAttentionSite,
    operands: Operands,
    rows: Rows,
    by_head: HeadProduct = batched,
) -> Emitted:
    """Emit one site absorbed; the output is ``[B, H, S, V]``, or ``[B, S, E]`` under fold-o."""
    query = site.query_value = absorbed_query(builder, operands, by_head)
    given = {"query": query, "bias": operands.bias, "sink": operands.sink}
    present = {name: value for name, value in given.items() if value is not None}
    weights = site.weights
    assert weights is not None
    output, *caches = builder.latent_attention(
        {**present, **rows.fused_operands(builder)},
        scale=site.scale,
        kv_lora_rank=weights.w_uk.shape[2],
        causal=site.core.causal,
        name="latent_attention",
        even=rows.is_even(weights.w_uk.shape[2]),
    )
    return Emitted(projected(builder, operands, output, by_head), tuple(caches))


def absorbed_query(builder: Builder, operands: Operands, by_head: HeadProduct = batched) -> Value:
    """The query in latent space, ``[B, H, S, C + R]``."""
    latent = operands.query_absorbed
    if latent is None:
        latent = by_head(builder, operands.query_nope, operands.weights.w_uk, "query_latent")
    if operands.query_rope is None:
        return latent
    return builder.concat((latent, operands.query_rope), 3, "query")


def projected(
    builder: Builder, operands: Operands, output: Value, by_head: HeadProduct = batched
) -> Value:
    """``[B, H, S, C]`` through W_UV, ``[B, H, S, V]``, or through ``W_UV W_O``, ``[B, S, E]``."""
    if operands.output_weight is not None:
        return _through_output(builder, output, operands.output_weight)
    values = by_head(builder, output, operands.weights.w_uv, "values")
    return shifted(builder, operands, values)


def shifted(builder: Builder, operands: Operands, values: Value) -> Value:
    """Values plus their bias, if they have one, for every query that may attend to something.

    A query that may not has no values to weigh: zeros are what it gets.
    """
    if operands.weights.value_bias is None:
        return values
    made = builder.add(values, operands.weights.value_bias, "values_shifted")
    if operands.bias is None:
        return made
    return zero_where_blind(builder, made, additive(builder, operands.bias, made))


def _through_output(builder: Builder, output: Value, weight: Value) -> Value:
    rows = builder.transpose(output, (0, 2, 1, 3), "output_rows")
    flat = builder.reshape(rows, builder.integers(0, 0, -1), "output_flat")
    return builder.matmul(flat, weight, "projected")
