"""The absorbed form: attention over latent rows with one shared head.

query_nope @ W_UK --+
                    +-- concat --> LatentAttention(rows) --> @ W_UV --> output [B, H, S, V]
query_rope ---------+
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.emission.rows import Rows
from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value
from mla_opt.sites import LatentAttentionSite, Operands


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a form made: the attention's output, and its caches with the new rows in them."""

    output: Value
    caches: tuple[Value, ...] = ()

    def values(self) -> tuple[Value, ...]:
        """All of it, the output first."""
        return (self.output, *self.caches)


def emit_absorbed(
    builder: Builder, site: LatentAttentionSite, operands: Operands, rows: Rows
) -> Emitted:
    """Emit one site absorbed; the output is ``[B, H, S, V]``, or ``[B, S, E]`` under fold-o."""
    query = site.query_value = absorbed_query(builder, operands)
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
    )
    if operands.output_weight is not None:
        projected = _projected(builder, output, operands.output_weight)
        return Emitted(projected, tuple(caches))
    return Emitted(_up_projected(builder, operands, output), tuple(caches))


def absorbed_query(builder: Builder, operands: Operands) -> Value:
    """The query in latent space, ``[B, H, S, C + R]``."""
    latent = operands.query_absorbed
    if latent is None:
        latent = builder.matmul(operands.query_nope, operands.weights.w_uk, "query_latent")
    if operands.query_rope is None:
        return latent
    return builder.concat((latent, operands.query_rope), 3, "query")


def _projected(builder: Builder, output: Value, weight: Value) -> Value:
    """``[B, H, S, C]`` through ``W_UV W_O``: ``[B, S, E]``."""
    rows = builder.transpose(output, (0, 2, 1, 3), "output_rows")
    flat = builder.reshape(rows, builder.integers(0, 0, -1), "output_flat")
    return builder.matmul(flat, weight, "projected")


def _up_projected(builder: Builder, operands: Operands, output: Value) -> Value:
    values = builder.matmul(output, operands.weights.w_uv, "values")
    if operands.weights.value_bias is None:
        return values
    return builder.add(values, operands.weights.value_bias, "values_shifted")
