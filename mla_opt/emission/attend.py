"""Softmax attention over expanded keys and values, in standard operators."""

from __future__ import annotations

from mla_opt.graphs.protocol import Builder
from mla_opt.handles import Value


def attend(
    builder: Builder,
    query: Value,
    keys: Value,
    values: Value,
    *,
    scale: float,
    bias: Value | None,
    sink: Value | None,
    causal: bool = False,
) -> Value:
    """Attention of ``query [B, H, S, D]`` to ``keys [B, H, D, T]`` and ``values [B, H, T, V]``.

    ``causal`` lets the last query see every key, and each one before it one key less. A query that
    may attend to nothing gives zeros, as the fused operator does.
    """
    # on the scores, not on the query: ONNX Runtime makes it the factor of the product, for free
    scores = builder.scaled(builder.matmul(query, keys, "products"), scale, query, "scores")
    addend = None if bias is None else additive(builder, bias, scores)
    if causal:
        addend = _causal(builder, query, values, addend)
    if addend is not None:
        scores = builder.add(scores, addend, "scores_biased")
    weights = (
        builder.softmax(scores, "weights") if sink is None else with_sink(builder, scores, sink)
    )
    output = builder.matmul(weights, values, "output")
    return output if addend is None else _zero_unless_sink(builder, output, addend, sink)


def additive(builder: Builder, bias: Value, like: Value) -> Value:
    """A boolean bias as numbers to add; it has no heads, so this costs next to nothing."""
    if not builder.is_boolean(bias):
        return bias
    zero = builder.scalar_like(0.0, like, "attend")
    never = builder.scalar_like(float("-inf"), like, "ignore")
    return builder.where(bias, zero, never, "bias_added")


def _causal(builder: Builder, query: Value, values: Value, addend: Value | None) -> Value:
    """The addend with what lies in a query's future forbidden: ``[S, T]`` or wider."""
    hidden = future(builder, query, values)
    never = builder.scalar_like(float("-inf"), query, "future")
    visible = builder.scalar_like(0.0, query, "visible") if addend is None else addend
    return builder.where(hidden, never, visible, "causal_bias")


def future(builder: Builder, query: Value, values: Value) -> Value:
    """True for keys that come after a query ``[S, T]``; the last query is as late as the last key.

    ``query`` is ``[B, H, S, D]``, ``values [B, H, T, V]``.
    """
    new, seen = builder.dimension(query, 2), builder.dimension(values, 2)
    last_seen = builder.add(
        builder.positions(new, "query_positions"), builder.subtract(seen, new, "past"), "last_seen"
    )
    return builder.greater(
        builder.positions(seen, "key_positions"),
        builder.unsqueeze(last_seen, 1, "last_seen_column"),
        "hidden",
    )


def with_sink(builder: Builder, scores: Value, sink: Value) -> Value:
    """Softmax over the scores and one more column, which is dropped again."""
    batch, query_len = builder.dimension(scores, 0), builder.dimension(scores, 2)
    one = builder.integers(1)
    shape = builder.concat((batch, one, query_len, one), 0, "sink_shape")
    column = builder.expand(
        builder.reshape(sink, builder.integers(1, -1, 1, 1), "sink_column"), shape, "sinks"
    )
    weights = builder.softmax(builder.concat((scores, column), 3, "scores_and_sink"), "weights")
    return builder.slice(weights, 0, -1, 3, "weights_kept")


def _zero_unless_sink(builder: Builder, output: Value, addend: Value, sink: Value | None) -> Value:
    return output if sink is not None else zero_where_blind(builder, output, addend)


def zero_where_blind(builder: Builder, output: Value, addend: Value) -> Value:
    """Zeros for queries that may attend to nothing: their softmax is not a number.

    The maximum is taken of 0 and 1, and the condition made as wide as the output, for OpenVINO: its
    maximum of nothing but -inf is a finite number, and what follows an attention with one number a
    query, such as ``[B, 1, S, 1]``, it computes wrongly from 128 value dims on (2026.4).
    """
    zero, one = (builder.scalar_like(number, output, f"blind_{number:.0f}") for number in (0, 1))
    never = builder.scalar_like(float("-inf"), addend, "blind_level")
    visible = builder.where(builder.greater(addend, never, "visible"), one, zero, "visible_as_1")
    seeing = builder.greater(builder.row_maximum(visible, "visible_maximum"), zero, "seeing")
    single = builder.integers(1)
    shape = (single, single, single, builder.dimension(output, 3))
    by_column = builder.expand(seeing, builder.concat(shape, 0, "one_row"), "seeing_by_column")
    return builder.where(by_column, output, zero, "output_or_zero")
