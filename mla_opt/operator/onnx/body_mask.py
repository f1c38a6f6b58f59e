"""The part of a function body that says who may attend to whom, before there are any heads.

    bias   last = the last column a row may see      nothing
      \\      |  (causal, in place)                     |
       \\  column <= last                             None
        \\    |
         Where( visible, bias or 0, -inf )  ->  one additive bias, [.., S or 1, T]

Everything here is H times smaller than the scores, which then take a single Add.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mla_opt.operator.contract import Signature
from mla_opt.operator.onnx.body_rows import Rows
from mla_opt.operator.onnx.body_tape import BodyTape


def additive_bias(
    tape: BodyTape, signature: Signature, inputs: Mapping[str, ir.Value], rows: Rows
) -> ir.Value | None:
    """Record the one bias to add to the scores; None when every row sees every column."""
    visible = _visible(tape, signature, inputs["query"], rows)
    bias = inputs["bias"] if signature.bias != "none" else None
    if bias is not None and signature.bias == "boolean":
        visible, bias = bias if visible is None else tape.op("And", visible, bias), None
    return bias if visible is None else _hide_rest(tape, visible, bias)


def may_see_nothing(signature: Signature) -> bool:
    """Whether some inputs leave a query row without a column to attend to.

    Not so for a buffer that has just been written to: every row sees the new rows.
    """
    unwritten = signature.in_place and not signature.has_latent
    return signature.bias != "none" or signature.causal or unwritten


def _hide_rest(tape: BodyTape, visible: ir.Value, bias: ir.Value | None) -> ir.Value:
    """Return ``bias`` (or 0) where ``visible``, and -inf elsewhere."""
    kept = tape.element(0.0) if bias is None else bias
    return tape.op("Where", visible, kept, tape.element(float("-inf")))


def _visible(tape: BodyTape, signature: Signature, query: ir.Value, rows: Rows) -> ir.Value | None:
    """Return which columns a row may see, as far as causality and valid rows say; None: all."""
    last = _last_visible(tape, signature, query, rows)
    if last is None:
        return None
    columns = tape.count(tape.index(0), tape.size(rows.latent_part, 2))
    return tape.op("LessOrEqual", columns, last)


def _last_visible(
    tape: BodyTape, signature: Signature, query: ir.Value, rows: Rows
) -> ir.Value | None:
    """Return the last column each row may see: [B, 1, S, 1], [B, 1, 1, 1] or [S, 1]."""
    valid = rows.valid
    if not signature.causal:
        return None if valid is None else tape.op("Sub", _per_sequence(tape, valid), tape.index(1))
    query_len = tape.size(query, 2)
    if valid is None:
        total_len = tape.size(rows.latent_part, 2)
        return tape.reshape(tape.count(tape.op("Sub", total_len, query_len), total_len), -1, 1)
    offsets = tape.reshape(tape.count(tape.index(0), query_len), -1, 1)
    return tape.op("Add", _per_sequence(tape, tape.op("Sub", valid, query_len)), offsets)


def _per_sequence(tape: BodyTape, numbers: ir.Value) -> ir.Value:
    """Reshape [B] to broadcast against [B, 1, S, T]."""
    return tape.reshape(numbers, -1, 1, 1, 1)
