"""``LatentAttention`` as a function of standard operators, one body for each signature.

    query [B,H,S,C+R]                 cache, latent, past_len
      | Mul scale                       | body_rows
    [B,1,H*S,C+R]  ---- MatMul ----  rows [B,1,T,C+R]      (split, even: both parts, summed)
                          |             |
    [B,H,S,T]      Add  bias (body_mask)|
                   Softmax              |
    [B,1,H*S,T]    ---- MatMul ---------+
                          |
                   Slice to C columns, Reshape to [B,H,S,C]     (even: of both halves' sums)

Heads are folded into rows so that each MatMul is one matrix product per sequence: batched over
heads it is H small ones that each read the whole cache (4 sequences of 8192 rows, one new token, 16
heads: 106 ms against 23 ms in ONNX Runtime on one core). The product with the packed rows keeps the
R rotary columns, because slicing them off the small result is cheaper than off the rows: 4.9 ms
against 6.0 for one token on 8192 rows; the two are within 5 % for 64 tokens. Nothing but the bias,
the softmax and, with a sink, two maxima reads the scores.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.operator.contract import ATTRIBUTES, DOMAIN, OP_TYPE, Signature
from mla_opt.operator.onnx.body_mask import additive_bias, may_see_nothing
from mla_opt.operator.onnx.body_rows import Rows, store_rows
from mla_opt.operator.onnx.body_style import TENSORRT, BodyStyle
from mla_opt.operator.onnx.body_tape import BodyTape

OPSET_VERSIONS = range(14, 26)
# Where rows @ query^T stops being faster than query @ rows^T: 0.9 ms against 1.9 with 16 query
# rows on 8192 latent rows, 1.9 against 2.8 with 32, 4.2 against 3.9 with 64.
FEW_QUERY_ROWS = 32


def function_body(
    signature: Signature,
    opset_version: int,
    overload: str = "",
    *,
    element_type: ir.DataType = ir.DataType.FLOAT,
    style: BodyStyle = TENSORRT,
) -> ir.Function:
    """Return the body for ``signature`` in operators of ``opset_version`` of the default domain.

    It takes any floating-point element type; at opset 14, which has no ``CastLike``, only
    ``element_type``. It declares the outputs that the signature has, and its ``slots`` as inputs.
    """
    if opset_version not in OPSET_VERSIONS:
        low, high = OPSET_VERSIONS[0], OPSET_VERSIONS[-1]
        raise InputError(f"{OP_TYPE}: no body for opset {opset_version}, only for {low} to {high}")
    inputs = {name: ir.Value(name=name) for name in signature.slots}
    tape = BodyTape(inputs["query"], opset_version, element_type)
    rows = store_rows(tape, signature, inputs, style)
    bias = additive_bias(tape, signature, inputs, rows)
    output = attend(tape, signature, inputs, rows, bias, style.adaptive)
    outputs = (output, *rows.stored) if signature.writes_cache else (output,)
    for name, value in zip(signature.outputs, outputs):
        value.name = name
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=tape.nodes, opset_imports={"": opset_version}
    )
    return ir.Function(DOMAIN, OP_TYPE, overload, graph=graph, attributes=_declared_attributes())


def _declared_attributes() -> list[ir.Attr]:
    """Return the attributes by name only: nodes carry them all, so none has a default."""
    return [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in ATTRIBUTES]


def attend(
    tape: BodyTape,
    signature: Signature,
    inputs: Mapping[str, ir.Value],
    rows: Rows,
    bias: ir.Value | None,
    adaptive: bool,
) -> ir.Value:
    """Record the attention itself, from an absorbed ``query``; of the inputs, that and ``sink``."""
    query = inputs["query"]
    scores = _scores(tape, query, rows, adaptive)
    if bias is not None or signature.sink:
        scores = _unfold(tape, scores, query)
    if bias is not None:
        scores = tape.op("Add", scores, bias)
    weights = tape.op("Softmax", scores, axis=-1)
    output = _unfold(tape, _weighted_sum(tape, weights, rows), query)
    if signature.sink:
        output = tape.op("Mul", output, share_kept(tape, scores, weights, inputs["sink"]))
    if bias is not None and may_see_nothing(signature):
        output = zero_where_blind(tape, output, bias)
    return output


def _scores(tape: BodyTape, query: ir.Value, rows: Rows, adaptive: bool) -> ir.Value:
    """Return scale * query @ rows^T, [B, 1, H*S, T]."""
    # Scaling the query is T / (C + R) times less work than scaling the scores.
    folded = _fold(tape, tape.op("Mul", query, tape.float_attribute("scale")))
    parts = _query_parts(tape, folded, rows)
    if not adaptive:
        return _query_by_rows(tape, parts, rows)
    few = tape.op("LessOrEqual", tape.size(folded, 2), tape.index(FEW_QUERY_ROWS))
    return tape.choose(
        few,
        lambda branch: _rows_by_query(branch, parts, rows),
        lambda branch: _query_by_rows(branch, parts, rows),
    )


def _query_parts(tape: BodyTape, folded: ir.Value, rows: Rows) -> tuple[ir.Value, ...]:
    """Return the columns of the query that go with each part of the rows."""
    if len(rows.parts) == 1:
        return (folded,)
    cut = tape.int_attribute("kv_lora_rank") if rows.half is None else rows.half
    return tape.columns_before(folded, cut), tape.columns_from(folded, cut)


def _query_by_rows(tape: BodyTape, query: tuple[ir.Value, ...], rows: Rows) -> ir.Value:
    """Return query @ rows^T; ONNX Runtime fuses the Transpose into the product."""
    return _sum(tape, (tape.op("MatMul", q, tape.swap_last(r)) for q, r in zip(query, rows.parts)))


def _rows_by_query(tape: BodyTape, query: tuple[ir.Value, ...], rows: Rows) -> ir.Value:
    """Return (rows @ query^T)^T: no repacking of the rows, but a Transpose of the scores."""
    products = (tape.op("MatMul", r, tape.swap_last(q)) for q, r in zip(query, rows.parts))
    return tape.swap_last(_sum(tape, products))


def _sum(tape: BodyTape, terms: Iterable[ir.Value]) -> ir.Value:
    return functools.reduce(lambda left, right: tape.op("Add", left, right), terms)


def _weighted_sum(tape: BodyTape, weights: ir.Value, rows: Rows) -> ir.Value:
    """Return weights @ c_kv, [B, 1, H*S, C]."""
    folded = _fold(tape, weights)
    context = tape.op("MatMul", folded, rows.latent_part)
    if rows.half is not None:
        context = tape.op("Concat", context, tape.op("MatMul", folded, rows.parts[1]), axis=3)
    elif len(rows.parts) == 2:
        return context
    return tape.columns_before(context, tape.int_attribute("kv_lora_rank"))


def share_kept(tape: BodyTape, scores: ir.Value, weights: ir.Value, sink: ir.Value) -> ir.Value:
    """Return the part of the probability that the sink leaves, [B, H, S, 1].

    It is sigmoid(logsumexp(scores) - sink), and the largest weight gives the logsumexp: two maxima
    instead of a copy of the scores with one more column.
    """
    top, largest = tape.reduce_max(scores), tape.reduce_max(weights)
    log_sum = tape.op("Sub", top, tape.op("Log", largest))
    return tape.op("Sigmoid", tape.op("Sub", log_sum, tape.reshape(sink, 1, -1, 1, 1)))


def zero_where_blind(tape: BodyTape, output: ir.Value, bias: ir.Value) -> ir.Value:
    """Replace the NaN of a softmax over nothing but -inf; the bias has no heads, so it tells.

    The maximum is taken of 0 and 1: OpenVINO's maximum of nothing but -inf is a finite number.
    """
    visible = tape.op("Greater", bias, tape.element(float("-inf")))
    sighted = tape.reduce_max(tape.op("Cast", visible, to=int(ir.DataType.FLOAT)))
    condition = tape.op("Cast", sighted, to=int(ir.DataType.BOOL))
    return tape.op("Where", condition, output, tape.element(0.0))


def _fold(tape: BodyTape, value: ir.Value) -> ir.Value:
    """Reshape [B, H, S, ...] to [B, 1, H*S, ...]."""
    return tape.reshape(value, 0, 1, -1, 0)


def _unfold(tape: BodyTape, value: ir.Value, query: ir.Value) -> ir.Value:
    """Reshape [B, 1, H*S, ...] to [B, H, S, ...]."""
    shape = tape.op("Concat", tape.sizes(query, 0, 1, 2), tape.ints(-1), axis=0)
    return tape.op("Reshape", value, shape)
