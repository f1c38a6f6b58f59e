"""A decode step in standard operators, in the form that TensorRT makes the fewest kernels of.

    query [B, H, S, C+R] * scale --> [B, H S, C+R] --+
                                                     +-- @ --> [B, H, S, M] + bias --> softmax --+
    rows = TensorScatter(buffer, new) --> [B, M, C+R] +                                          |
                                                     +-- [B, H S, M] @ rows --> first C columns --+

Heads are folded into rows, so that each product is one per sequence. As three-dimensional tensors
TensorRT copies the rows once for both products; with the axis of the one head it does so twice, and
batched over heads once for every head. It computes what ``LatentAttention`` does in place.
"""

from __future__ import annotations

from mla_opt.emission.absorbed import Emitted, absorbed_query, projected
from mla_opt.emission.attend import additive, with_sink, zero_where_blind
from mla_opt.emission.heads_first import heads_first
from mla_opt.emission.prompt import TensorRTBuilder
from mla_opt.emission.rows import Rows
from mla_opt.handles import Value
from mla_opt.sites import LatentAttentionSite, Operands


def emit_folded(
    builder: TensorRTBuilder, site: LatentAttentionSite, operands: Operands, rows: Rows
) -> Emitted:
    """Emit one site on a buffer; the output is ``[B, H, S, V]``, or ``[B, S, E]`` under fold-o."""
    (buffer,), valid = rows.past, rows.past_len
    assert site.weights is not None and valid is not None
    if rows.new:
        (new,) = rows.new
        buffer = builder.write_rows(buffer, new, valid, "new_cache")
        added = builder.cast_like(builder.dimension(new, 2), valid, "new_rows")
        valid = builder.add(valid, added, "valid_rows")
    query = site.query_value = absorbed_query(builder, operands, heads_first)
    builder.declare_like(query, operands.query_nope)
    width = len(site.weights.rope_dims) + site.weights.w_uk.shape[2]
    flat = builder.reshape(buffer, builder.integers(0, -1, width), "rows_flat")
    scores = _unfolded(builder, _products(builder, site, query, flat), query)
    bias = _bias(builder, site, operands, query, buffer, valid)
    biased = builder.add(scores, bias, "scores_biased")
    sink = operands.sink
    weights = (
        builder.softmax(biased, "weights") if sink is None else with_sink(builder, biased, sink)
    )
    context = builder.matmul(_folded(builder, weights), flat, "context")
    latent = builder.slice(context, 0, site.weights.w_uk.shape[2], 2, "context_latent")
    output = _unfolded(builder, latent, query)
    if sink is None:
        output = zero_where_blind(builder, output, bias)
    return Emitted(projected(builder, operands, output, heads_first), (buffer,) if rows.new else ())


def _products(
    builder: TensorRTBuilder, site: LatentAttentionSite, query: Value, rows: Value
) -> Value:
    """``scale * query @ rows^T``, ``[B, H S, M]``; scaling the query is the least work."""
    factor = builder.scalar_like(site.scale, query, "scale")
    scaled = builder.multiply(query, factor, "query_scaled")
    by_column = builder.transpose(rows, (0, 2, 1), "rows_transposed")
    return builder.matmul(_folded(builder, scaled), by_column, "products")


def _bias(
    builder: TensorRTBuilder,
    site: LatentAttentionSite,
    operands: Operands,
    query: Value,
    buffer: Value,
    valid: Value,
) -> Value:
    """What to add to the scores: the site's bias where a row is valid and not of the future."""
    columns = builder.cast_like(
        builder.positions(builder.dimension(buffer, 2), "columns"), valid, "column_numbers"
    )
    last = builder.reshape(valid, builder.integers(-1, 1, 1, 1), "valid_by_sequence")
    if site.core.causal:
        new = builder.dimension(query, 2)
        offsets = builder.subtract(
            builder.unsqueeze(builder.positions(new, "rows"), 1, "row_column"), new, "to_the_end"
        )
        last = builder.add(
            builder.add(last, builder.cast_like(offsets, valid, "offsets"), "last_seen_before"),
            builder.cast_like(builder.integers(1), valid, "one"),
            "columns_seen",
        )
    visible = builder.greater(last, columns, "visible")
    never = builder.scalar_like(float("-inf"), query, "never")
    free = builder.scalar_like(0.0, query, "free")
    kept = free if operands.bias is None else additive(builder, operands.bias, query)
    return builder.where(visible, kept, never, "bias_of_valid")


def _folded(builder: TensorRTBuilder, value: Value) -> Value:
    """``[B, H, S, X]`` as ``[B, H S, X]``."""
    batch, width = builder.dimension(value, 0), builder.dimension(value, 3)
    shape = builder.concat((batch, builder.integers(-1), width), 0, "folded_shape")
    return builder.reshape(value, shape, "folded")


def _unfolded(builder: TensorRTBuilder, value: Value, query: Value) -> Value:
    """``[B, H S, X]`` as ``[B, H, S, X]``, with H and S of the query."""
    sizes = (builder.dimension(query, axis) for axis in range(3))
    shape = builder.concat((*sizes, builder.integers(-1)), 0, "unfolded_shape")
    return builder.reshape(value, shape, "unfolded")
