"""The expanded form: keys and values of every head, made from the latent rows and used once.

    c_kv^T --> W_UK @ --+
                        +-- concat --> keys^T --+
    k_pe^T --- heads ---+                       +--> softmax attention --> output [B, H, S, V]
    c_kv ----> @ W_UV ------------> values -----+

Keys are made transposed, the way the scores need them, so that ``W_UK`` serves both forms as it is
stored. For many queries this does less arithmetic than the absorbed form; see
:attr:`mla_opt.geometry.MlaGeometry.prefill_crossover`.
"""

from __future__ import annotations

from mla_opt.emission.absorbed import Emitted
from mla_opt.emission.attend import attend
from mla_opt.emission.rows import Rows
from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value
from mla_opt.sites import LatentAttentionSite, Operands, StoredWeights

HALVES = ("first_half", "second_half")
"""What the halves of rows are called."""


def emit_expanded(
    builder: Builder, site: LatentAttentionSite, operands: Operands, rows: Rows
) -> Emitted:
    """Emit one site expanded; the output is ``[B, H, S, V]``."""
    caches = _append(builder, rows)
    seen = _widened(builder, rows, caches, operands.query_nope)
    if rows.half is not None:
        seen = (builder.concat(seen, 3, "latent_rows"),)
    latent, rope = latent_parts(builder, site, seen)
    keys = expanded_keys(builder, site, operands.weights, latent, rope)
    values = expanded_values(builder, operands.weights, latent)
    query = operands.query_nope
    if operands.query_rope is not None:
        query = builder.concat((query, operands.query_rope), 3, "query_expanded")
    output = attend(
        builder,
        query,
        keys,
        values,
        scale=site.scale,
        bias=operands.bias,
        sink=operands.sink,
        causal=site.core.causal,
    )
    return Emitted(output, caches if rows.past and rows.new else ())


def expanded_keys(
    builder: Builder,
    site: LatentAttentionSite,
    weights: StoredWeights,
    latent: Value,
    rope: Value | None,
) -> Value:
    """Keys, transposed: ``[B, H, N + R, T]``."""
    nope = builder.matmul(
        weights.w_uk, builder.transpose(latent, (0, 1, 3, 2), "latent_transposed"), "keys_nope"
    )
    if rope is None:
        return nope
    assert site.weights is not None
    shared = builder.transpose(rope, (0, 1, 3, 2), "rope_transposed")
    heads = builder.integers(1, site.weights.w_uk.shape[0], 1, 1)
    return builder.concat((nope, builder.expand(shared, heads, "keys_rope")), 2, "keys")


def expanded_values(builder: Builder, weights: StoredWeights, latent: Value) -> Value:
    """Values ``[B, H, T, V]``."""
    values = builder.matmul(latent, weights.w_uv, "values_expanded")
    if weights.value_bias is None:
        return values
    return builder.add(values, weights.value_bias, "values_expanded_shifted")


def _append(builder: Builder, rows: Rows) -> tuple[Value, ...]:
    """The rows with the new ones behind the past ones, in the layout of the cache."""
    if not rows.past:
        return rows.new
    if not rows.new:
        return rows.past
    new = rows.new
    if len(new) > len(rows.past):
        new = (builder.concat(new, 3, "latent"),)
    elif rows.half is not None:
        new = builder.split(new[0], (rows.half, rows.half), 3, HALVES)
    if rows.narrow:
        new = tuple(builder.cast_like(added, rows.past[0], "rows_kept") for added in new)
    return tuple(
        builder.concat((past, added), 2, f"cache_{index}")
        for index, (past, added) in enumerate(zip(rows.past, new))
    )


def _widened(
    builder: Builder, rows: Rows, caches: tuple[Value, ...], like: Value
) -> tuple[Value, ...]:
    """The rows as keys and values are made of them; those that were kept are the rounded ones."""
    if not rows.narrow:
        return caches
    return tuple(
        builder.cast_like(cache, like, f"rows_{index}") for index, cache in enumerate(caches)
    )


def latent_parts(
    builder: Builder, site: LatentAttentionSite, rows: tuple[Value, ...]
) -> tuple[Value, Value | None]:
    """The rows as ``c_kv`` and ``k_pe``; the latter is ``None`` when R is 0."""
    assert site.weights is not None
    c, r = site.weights.w_uk.shape[2], len(site.weights.rope_dims)
    if len(rows) == 2:
        return rows[0], rows[1]
    if not r:
        return rows[0], None
    latent, rope = builder.split(rows[0], (c, r), 3, ("c_kv", "k_pe"))
    return latent, rope
