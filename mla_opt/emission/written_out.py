"""A fused attention that keeps its own cache, as separate operators.

past keys   --+                                  past values --+
new keys -----+-- concat --> present keys        new values ---+-- concat --> present values

query @ present keys^T --> scale --> bias --> softmax --> @ present values --> output
"""

from __future__ import annotations

from mla_opt.emission.attend import additive
from mla_opt.emission.layout import restored, standard
from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Builder, Graph
from mla_opt.handles import Node, Value
from mla_opt.sites.drafts import Draft
from mla_opt.sites.layout import KEYS, QUERY, Layout, Part, Role


def draft_written_out(
    graph: Graph, node: Node, fused: op.FusedAttention, past: op.OwnCache
) -> Draft:
    """Let what reads the attention and its caches read what separate operators make."""
    assert fused.heads is not None
    assert fused.key_heads is not None
    for value in (fused.query, fused.key, fused.value, past.key, past.value, fused.bias):
        if value is not None:
            graph.dtype(value)  # noted for what is emitted
    builder = graph.builder(node, f"{fused.output.name}/mla")
    query = _by_head(builder, fused, fused.query, "query", fused.heads)
    keys, values = (
        builder.concat((old, _by_head(builder, fused, new, "key", fused.key_heads)), 2, name)
        for old, new, name in (
            (past.key, fused.key, "present_keys"),
            (past.value, fused.value, "present_values"),
        )
    )
    turned = builder.transpose(_repeated(builder, fused, keys), (0, 1, 3, 2), "keys_transposed")
    product = builder.matmul(query, turned, "products")
    first = graph.producer(product)
    assert first is not None
    weights = builder.softmax(_scaled(builder, fused, product), "weights")
    output = builder.matmul(weights, _repeated(builder, fused, values), "output")
    layout = _layout(fused, "query", fused.heads)
    new = restored(builder, output, layout, QUERY, "output_of_heads")
    pairs = (
        (fused.output, new),
        (past.present_key, keys),
        (past.present_value, values),
    )
    for old, made in pairs:
        graph.replace(old, made)
    return Draft(pairs, first)


def _by_head(
    builder: Builder, fused: op.FusedAttention, value: Value, role: Role, heads: int
) -> Value:
    roles = QUERY if role == "query" else KEYS
    return standard(builder, value, _layout(fused, role, heads), roles, f"{role}_by_head")


def _layout(fused: op.FusedAttention, tokens: Role, heads: int) -> Layout:
    """Axes ``[B, H, S, D]``, or ``[B, S, H D]``."""
    batch, head = (Part("batch", None),), (Part("head", heads),)
    token, width = (Part(tokens, None),), (Part("width", None),)
    return (batch, token, (*head, *width)) if fused.flat else (batch, head, token, width)


def _repeated(builder: Builder, fused: op.FusedAttention, value: Value) -> Value:
    """Heads of keys or values, as many times as queries share one."""
    assert fused.heads is not None and fused.key_heads is not None
    times = fused.heads // fused.key_heads
    if times == 1:
        return value
    apart = builder.unsqueeze(value, 2, "heads_apart")
    wide = builder.expand(apart, builder.integers(1, 1, times, 1, 1), "heads_repeated")
    width = builder.dimension(value, 3)
    shape = builder.concat((builder.integers(0, fused.heads, -1), width), 0, "shape_of_heads")
    return builder.reshape(wide, shape, "heads_of_query")


def _scaled(builder: Builder, fused: op.FusedAttention, product: Value) -> Value:
    """The scores: scaled, and with the bias added to them."""
    scores = builder.multiply(product, builder.scalar_like(fused.scale, product, "scale"), "scores")
    if fused.bias is None:
        return scores
    return builder.add(scores, additive(builder, fused.bias, scores), "scores_biased")
