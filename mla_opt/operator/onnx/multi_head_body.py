"""``MultiHeadLatentAttention`` as a function of standard operators: both forms under one If.

    rows, bias                            as LatentAttention's: body_rows, body_mask
    W_UK [H, N, C], W_UV^T [H, V, C]      body_weights

    absorbed   [query_nope @ W_UK | query_rope] -> attention to rows (function_body) -> @ W_UV
    expanded   [query_nope | query_rope] @ [c_kv @ W_UK^T | k_pe]^T -> softmax -> @ (c_kv @ W_UV)

Which one takes fewer products is known when S and T are: absorbed attention multiplies 2 C + R
numbers for each query and key, and C (N + V) for each query; expanded N + R + V, and C (N + V) for
each key.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.operator.contract import DOMAIN, Signature
from mla_opt.operator.multi_head import ATTRIBUTES, MULTI_HEAD_OP_TYPE, MultiHeadSignature
from mla_opt.operator.onnx.body_mask import additive_bias, may_see_nothing
from mla_opt.operator.onnx.body_rows import Rows, store_rows
from mla_opt.operator.onnx.body_style import TENSORRT, BodyStyle
from mla_opt.operator.onnx.body_tape import BodyTape
from mla_opt.operator.onnx.body_weights import HeadWeights, head_weights
from mla_opt.operator.onnx.function_body import (
    OPSET_VERSIONS,
    attend,
    share_kept,
    zero_where_blind,
)


def multi_head_function_body(
    signature: MultiHeadSignature,
    opset_version: int,
    overload: str = "",
    *,
    element_type: ir.DataType = ir.DataType.FLOAT,
    style: BodyStyle = TENSORRT,
) -> ir.Function:
    """Return the body for ``signature`` in operators of ``opset_version`` of the default domain.

    It takes queries of any floating-point type; at opset 14 only of ``element_type``.

    Raises:
        InputError: there is no body for this opset.
    """
    if opset_version not in OPSET_VERSIONS:
        low, high = OPSET_VERSIONS[0], OPSET_VERSIONS[-1]
        raise InputError(
            f"{MULTI_HEAD_OP_TYPE}: no body for opset {opset_version}, only for {low} to {high}"
        )
    inputs = {name: ir.Value(name=name) for name in signature.slots}
    tape = BodyTape(inputs["query"], opset_version, element_type)
    rows = store_rows(tape, signature.attention, inputs, style, "qk_nope_head_dim")
    output = _Body(signature, inputs, rows, style).record(tape)
    outputs = (output, *rows.stored) if signature.attention.writes_cache else (output,)
    for name, value in zip(signature.outputs, outputs):
        value.name = name
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=tape.nodes, opset_imports={"": opset_version}
    )
    declared = [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in ATTRIBUTES]
    return ir.Function(DOMAIN, MULTI_HEAD_OP_TYPE, overload, graph=graph, attributes=declared)


class _Body:
    """What both forms read, made once in front of them."""

    def __init__(
        self,
        signature: MultiHeadSignature,
        inputs: Mapping[str, ir.Value],
        rows: Rows,
        style: BodyStyle,
    ) -> None:
        self._signature = signature
        self._inputs = inputs
        self._rows = rows
        self._style = style

    @property
    def _attention(self) -> Signature:
        return self._signature.attention

    def record(self, tape: BodyTape) -> ir.Value:
        """Record the form that the signature asks for, or the choice."""
        bias = additive_bias(tape, self._attention, self._inputs, self._rows)
        weights = head_weights(tape, self._signature.storage, self._inputs)
        if self._signature.form == "absorbed":
            return self._absorbed(tape, weights, bias)
        if self._signature.form == "expanded":
            return self._expanded(tape, weights, bias)
        return tape.choose(
            self._absorbed_is_less(tape),
            lambda branch: self._absorbed(branch, weights, bias),
            lambda branch: self._expanded(branch, weights, bias),
        )

    def _absorbed_is_less(self, tape: BodyTape) -> ir.Value:
        """S (T (2 C - N - V) + C (N + V)) <= T C (N + V)."""
        rank, nope, value = (
            tape.int_attribute(name) for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")
        )
        query_len = tape.sizes(self._inputs["query"], 2)
        total_len = tape.sizes(self._rows.latent_part, 2)
        made = tape.op("Add", nope, value)
        expansion = tape.op("Mul", rank, made)
        excess = tape.op("Sub", tape.op("Add", rank, rank), made)
        absorbed = tape.op("Add", tape.op("Mul", total_len, excess), expansion)
        less = tape.op(
            "LessOrEqual",
            tape.op("Mul", query_len, absorbed),
            tape.op("Mul", total_len, expansion),
        )
        scalar = tape.op("Constant", value_ints=ir.AttrInt64s("value_ints", []))
        return tape.op("Reshape", less, scalar)

    def _query_parts(self, tape: BodyTape) -> tuple[ir.Value, ir.Value]:
        nope = tape.int_attribute("qk_nope_head_dim")
        query = self._inputs["query"]
        return tape.columns_before(query, nope), tape.columns_from(query, nope)

    def _absorbed(self, tape: BodyTape, weights: HeadWeights, bias: ir.Value | None) -> ir.Value:
        nope, rope = self._query_parts(tape)
        query = tape.op("Concat", tape.op("MatMul", nope, weights.w_uk), rope, axis=3)
        inputs = {**self._inputs, "query": query}
        output = attend(tape, self._attention, inputs, self._rows, bias, self._style.adaptive)
        return tape.op("MatMul", output, self._turned(tape, weights.w_uv))

    def _expanded(self, tape: BodyTape, weights: HeadWeights, bias: ir.Value | None) -> ir.Value:
        c_kv, k_pe = self._row_parts(tape)
        scores = self._scores(tape, c_kv, k_pe, weights.w_uk)
        if bias is not None:
            scores = tape.op("Add", scores, bias)
        probabilities = tape.op("Softmax", scores, axis=-1)
        values = tape.op("MatMul", c_kv, self._turned(tape, weights.w_uv))
        output = tape.op("MatMul", probabilities, values)
        if self._attention.sink:
            share = share_kept(tape, scores, probabilities, self._inputs["sink"])
            output = tape.op("Mul", output, share)
        if bias is not None and may_see_nothing(self._attention):
            output = zero_where_blind(tape, output, bias)
        return output

    def _row_parts(self, tape: BodyTape) -> tuple[ir.Value, ir.Value]:
        if len(self._rows.parts) == 2:
            return self._rows.parts[0], self._rows.parts[1]
        rank = tape.int_attribute("kv_lora_rank")
        packed = self._rows.latent_part
        return tape.columns_before(packed, rank), tape.columns_from(packed, rank)

    def _scores(self, tape: BodyTape, c_kv: ir.Value, k_pe: ir.Value, w_uk: ir.Value) -> ir.Value:
        """Return scale * [query_nope | query_rope] @ [keys | k_pe]^T, [B, H, S, T]."""
        query = tape.op("Mul", self._inputs["query"], tape.float_attribute("scale"))
        keys = tape.op("MatMul", c_kv, self._turned(tape, w_uk))
        # Broadcast to all heads, so that there is one product and one Concat.
        shape = tape.op("Concat", tape.sizes(keys, 0, 1, 2), tape.sizes(k_pe, 3), axis=0)
        joined = tape.op("Concat", keys, tape.op("Expand", k_pe, shape), axis=3)
        return tape.op("MatMul", query, tape.swap_last(joined))

    @staticmethod
    def _turned(tape: BodyTape, matrices: ir.Value) -> ir.Value:
        """Return [H, Y, X] as [H, X, Y]."""
        return tape.op("Transpose", matrices, perm=[0, 2, 1])
