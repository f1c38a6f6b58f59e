"""A fused attention that keeps its own cache, or masks by lengths, as separate operators.

past keys   --+                                  past values --+
new keys -----+-- concat --> present keys        new values ---+-- concat --> present values

(or new rows are put in their places, where the past is a buffer)

query @ present keys^T --> scale --> bias --> softmax --> @ present values --> output

A causal mask hides from each query the keys after it: the new queries are the last tokens, as the
ONNX specification has it for past keys and ONNX Runtime computes it. Where sequences have lengths,
the new queries are the last tokens of those.
"""

from __future__ import annotations

from mla_opt.emission.attend import additive, future
from mla_opt.emission.behind_lengths import behind_lengths
from mla_opt.emission.buffers_of_rows import Buffers
from mla_opt.emission.layout import restored, standard
from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Builder, Graph
from mla_opt.handles import Node, Value
from mla_opt.sites.cache import Run
from mla_opt.sites.drafts import Draft
from mla_opt.sites.layout import KEYS, QUERY, Layout, Part, Role


def draft_written_out(graph: Graph, node: Node, fused: op.FusedAttention) -> Draft:
    """Let what reads the attention and its caches read what separate operators make."""
    assert fused.key_heads is not None
    _note_types(graph, fused)
    builder = graph.builder(node, f"{fused.output.name}/mla")
    query = _by_head(builder, fused, fused.query, "query")
    buffers, past, counted = None, fused.past, _are_counted(graph, fused)
    if past is not None and past.last is not None:
        buffers = Buffers(builder, past, query, fused.key_heads)
    past_keys, past_values = (None, None) if past is None else (past.key, past.value)
    keys = _joined(builder, fused, past_keys, fused.key, buffers, "present_keys")
    values = _joined(builder, fused, past_values, fused.value, buffers, "present_values")
    turned = builder.transpose(_repeated(builder, fused, keys), (0, 1, 3, 2), "keys_transposed")
    product = builder.matmul(query, turned, "products")
    first = graph.producer(product)
    assert first is not None
    scores = _scaled(builder, fused, product)
    hidden = _hidden(builder, fused, query, keys, buffers)
    if hidden is not None:
        never = builder.scalar_like(float("-inf"), scores, "never")
        scores = builder.where(hidden, never, scores, "scores_so_far")
    weights = builder.softmax(scores, "weights")
    output = builder.matmul(weights, _repeated(builder, fused, values), "output")
    new = restored(builder, output, _layout(fused, "query"), QUERY, "output_of_heads")
    run = None
    if buffers is not None and hidden is not None and not counted:
        run = Run(buffers.start, buffers.places, hidden)
    pairs = [(fused.output, new)]
    if past is not None:
        pairs += [(past.present_key, keys), (past.present_value, values)]
    for old, made in pairs:
        graph.replace(old, made)
    return Draft(tuple(pairs), first, run)


def _note_types(graph: Graph, fused: op.FusedAttention) -> None:
    """Have the element types noted that emission goes by."""
    past = fused.past
    given = [fused.query, fused.key, fused.value, fused.bias, fused.lengths]
    if past is not None:
        given += [past.key, past.value, past.last, past.total]
    for value in given:
        if value is not None:
            graph.dtype(value)


def _hidden(
    builder: Builder, fused: op.FusedAttention, query: Value, keys: Value, buffers: Buffers | None
) -> Value | None:
    """True for keys that a query may not attend to, apart from its mask; ``None``: for none."""
    if fused.lengths is not None:
        return behind_lengths(builder, fused.lengths, query, keys, causal=fused.causal)
    if not fused.causal:
        return None
    return future(builder, query, keys) if buffers is None else buffers.behind()


def _are_counted(graph: Graph, fused: op.FusedAttention) -> bool:
    """Whether somebody counts the rows of its caches."""
    past = fused.past
    if past is None:
        return False
    caches = (past.key, past.value, past.present_key, past.present_value)
    return any(graph.shape_readers(value) for value in caches)


def _joined(
    builder: Builder,
    fused: op.FusedAttention,
    past: Value | None,
    rows: Value,
    buffers: Buffers | None,
    name: str,
) -> Value:
    """New rows behind those of the past, or in their places in a buffer: ``[B, J, T, D]``."""
    new = _by_head(builder, fused, rows, "key")
    if past is None:
        return new
    if buffers is None:
        return builder.concat((past, new), 2, name)
    return buffers.joined(past, new, name)


def _by_head(builder: Builder, fused: op.FusedAttention, value: Value, role: Role) -> Value:
    roles = QUERY if role == "query" else KEYS
    return standard(builder, value, _layout(fused, role), roles, f"{role}_by_head")


def _layout(fused: op.FusedAttention, tokens: Role) -> Layout:
    """Axes ``[B, H, S, D]``, or ``[B, S, H D]``."""
    heads = fused.heads if tokens == "query" else fused.key_heads
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
