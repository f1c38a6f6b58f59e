"""``MultiHeadLatentAttention`` as a function of standard operators: both forms under one If.

    rows, bias                            as LatentAttention's: body_rows, body_mask
    W_UK [H, N, C], W_UV [H, C, V]        body_weights

    absorbed   [query_nope @ W_UK | query_rope] -> attention to rows (function_body) -> @ W_UV
    expanded   [query_nope | query_rope] @ [W_UK @ c_kv^T | k_pe^T] -> softmax -> @ (c_kv @ W_UV);
               by blocks of queries (body_expanded)

Which one takes fewer products is known when S and T are: absorbed attention multiplies 2 C + R
numbers for each query and key, and C (N + V) for each query; expanded N + R + V, and C (N + V) for
each key. Of a buffer T are the rows of its longest sequence. Expanded, only those are copied out of
it, as each would cost C (N + V) for a head; absorbed, where they are fewer than MOSTLY_FULL of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.operator.contract import DOMAIN, Signature
from mla_opt.operator.multi_head import ATTRIBUTES, MULTI_HEAD_OP_TYPE, MultiHeadSignature
from mla_opt.operator.onnx.body_expanded import Heads, attend_to_heads
from mla_opt.operator.onnx.body_mask import additive_bias, may_see_nothing
from mla_opt.operator.onnx.body_rows import Rows, store_rows
from mla_opt.operator.onnx.body_style import TENSORRT, BodyStyle
from mla_opt.operator.onnx.body_tape import BodyTape
from mla_opt.operator.onnx.body_weights import HeadWeights, head_weights
from mla_opt.operator.onnx.function_body import (
    OPSET_VERSIONS,
    attend,
    zero_where_blind,
)

# Part of a buffer from which on all of it is attended to, rather than a copy of the rows that are
# valid: copying all of 32768 rows takes a seventh of the time of one token of 16 heads.
MOSTLY_FULL = (4, 5)


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


@dataclass(frozen=True, slots=True)
class _Seen:
    """The rows to attend to, and the bias that goes with them."""

    rows: Rows
    bias: ir.Value | None

    def first(self, tape: BodyTape, count: ir.Value) -> _Seen:
        """Return the first ``count`` [1] rows of each sequence."""
        start = tape.ints(0)
        parts = (tape.op("Slice", part, start, count, tape.ints(2)) for part in self.rows.parts)
        bias = self.bias
        if bias is not None:
            bias = tape.op("Slice", bias, start, count, tape.ints(-1))
        return _Seen(replace(self.rows, parts=tuple(parts)), bias)


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
        seen = _Seen(self._rows, bias)
        weights = head_weights(tape, self._signature.storage, self._inputs)
        longest = self._longest(tape)
        if self._signature.form == "absorbed":
            return self._absorbed(tape, weights, seen, longest)
        is_short = self._is_one if self._signature.form == "expanded" else self._absorbed_is_less
        return tape.choose(
            is_short(tape, longest),
            lambda branch: self._absorbed(branch, weights, seen, longest),
            lambda branch: self._expanded(branch, weights, seen, longest),
        )

    def _longest(self, tape: BodyTape) -> ir.Value | None:
        """Return how many rows of a buffer the longest sequence has, at least 1; None: all."""
        if self._rows.valid is None or not self._style.adaptive:
            return None
        return tape.op("Max", tape.reduce_max(self._rows.valid), tape.ints(1))

    def _is_one(self, tape: BodyTape, longest: ir.Value | None) -> ir.Value:
        """S <= 1."""
        del longest
        return tape.op("LessOrEqual", tape.size(self._inputs["query"], 2), tape.index(1))

    def _absorbed_is_less(self, tape: BodyTape, longest: ir.Value | None) -> ir.Value:
        """S (T (2 C - N - V) + C (N + V)) <= T C (N + V)."""
        rank, nope, value = (
            tape.int_attribute(name) for name in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim")
        )
        query_len = tape.sizes(self._inputs["query"], 2)
        total_len = tape.sizes(self._rows.latent_part, 2) if longest is None else longest
        made = tape.op("Add", nope, value)
        expansion = tape.op("Mul", rank, made)
        excess = tape.op("Sub", tape.op("Add", rank, rank), made)
        absorbed = tape.op("Add", tape.op("Mul", total_len, excess), expansion)
        less = tape.op(
            "LessOrEqual",
            tape.op("Mul", query_len, absorbed),
            tape.op("Mul", total_len, expansion),
        )
        return _scalar(tape, less)

    def _query_parts(self, tape: BodyTape) -> tuple[ir.Value, ir.Value]:
        nope = tape.int_attribute("qk_nope_head_dim")
        query = self._inputs["query"]
        return tape.columns_before(query, nope), tape.columns_from(query, nope)

    def _absorbed(
        self, tape: BodyTape, weights: HeadWeights, seen: _Seen, longest: ir.Value | None
    ) -> ir.Value:
        nope, rope = self._query_parts(tape)
        query = tape.op("Concat", tape.op("MatMul", nope, weights.w_uk), rope, axis=3)
        inputs = {**self._inputs, "query": query}

        def attended(branch: BodyTape, seen: _Seen) -> ir.Value:
            return attend(
                branch, self._attention, inputs, seen.rows, seen.bias, self._style.adaptive
            )

        if longest is None:
            output = attended(tape, seen)
        else:
            output = tape.choose(
                self._is_mostly_full(tape, longest),
                lambda branch: attended(branch, seen),
                lambda branch: attended(branch, seen.first(branch, longest)),
            )
        return tape.op("MatMul", output, weights.w_uv)

    def _is_mostly_full(self, tape: BodyTape, longest: ir.Value) -> ir.Value:
        part, whole = (tape.ints(number) for number in MOSTLY_FULL)
        rows = tape.sizes(self._rows.latent_part, 2)
        full = tape.op("LessOrEqual", tape.op("Mul", rows, part), tape.op("Mul", longest, whole))
        return _scalar(tape, full)

    def _expanded(
        self, tape: BodyTape, weights: HeadWeights, seen: _Seen, longest: ir.Value | None
    ) -> ir.Value:
        if longest is not None:
            seen = seen.first(tape, longest)
        c_kv, k_pe = self._row_parts(tape, seen.rows)
        heads = Heads(
            self._keys(tape, c_kv, k_pe, weights.w_uk),
            tape.op("MatMul", c_kv, weights.w_uv),
            seen.bias,
            self._inputs["sink"] if self._attention.sink else None,
        )
        query = tape.op("Mul", self._inputs["query"], tape.float_attribute("scale"))
        output = attend_to_heads(tape, query, heads, by_blocks=self._style.query_blocks)
        if seen.bias is not None and may_see_nothing(self._attention):
            output = zero_where_blind(tape, output, seen.bias)
        return output

    @staticmethod
    def _row_parts(tape: BodyTape, rows: Rows) -> tuple[ir.Value, ir.Value]:
        if len(rows.parts) == 2 and rows.half is None:
            return rows.parts[0], rows.parts[1]
        whole = rows.parts[0] if rows.half is None else tape.op("Concat", *rows.parts, axis=3)
        rank = tape.int_attribute("kv_lora_rank")
        return tape.columns_before(whole, rank), tape.columns_from(whole, rank)

    @staticmethod
    def _keys(tape: BodyTape, c_kv: ir.Value, k_pe: ir.Value, w_uk: ir.Value) -> ir.Value:
        """Return [W_UK @ c_kv^T | k_pe^T], [B, H, N+R, T]."""
        keys = tape.op("MatMul", w_uk, tape.swap_last(c_kv))
        # Broadcast to all heads, so that there is one product and one Concat.
        of_keys, rope = tape.sizes(keys, 0, 1), tape.swap_last(k_pe)
        shape = tape.op("Concat", of_keys, tape.sizes(rope, 2, 3), axis=0)
        return tape.op("Concat", keys, tape.op("Expand", rope, shape), axis=2)


def _scalar(tape: BodyTape, condition: ir.Value) -> ir.Value:
    """Return a condition [1] as a scalar, which an If takes."""
    # A tensor: tools that write the file anew cannot tell the type of an empty list.
    shape = ir.AttrTensor("value", ir.tensor(np.array([], np.int64)))
    return tape.op("Reshape", condition, tape.op("Constant", value=shape))
