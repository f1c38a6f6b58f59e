"""The part of a function body that puts the new latent rows behind the past ones.

    growing     rows = Concat(cache, latent)                 new_cache = rows
    in place    rows = TensorScatter(cache, latent, past_len)  new_cache = rows
    split       the same, for the c_kv and the k_pe columns apart
    even        the same, for the two halves of the rows apart
    one source  rows = latent, or cache                       no new_cache

Before TensorScatter (opset 24), and for runtimes without it, the buffer is written with ScatterND.
Narrow caches take new rows
rounded to their type, and are read as the query's; for quantized ones see body_quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from mla_opt.operator.contract import Signature
from mla_opt.operator.onnx.body_quantized import QuantizedRows
from mla_opt.operator.onnx.body_style import BodyStyle
from mla_opt.operator.onnx.body_tape import BodyTape

TENSOR_SCATTER_SINCE = 24


@dataclass(frozen=True, slots=True)
class Rows:
    """Latent rows [B, 1, T, ...] to attend to.

    ``parts`` are the packed rows, or their c_kv and k_pe columns when split, or their halves when
    even, in the query's type; ``stored`` are the same as the cache keeps them. ``valid`` [B] int64
    counts the rows that hold something; None: all. ``half`` [1] int64 is the width of a half; None:
    the rows are not in halves.
    """

    parts: tuple[ir.Value, ...]
    stored: tuple[ir.Value, ...]
    valid: ir.Value | None = None
    half: ir.Value | None = None

    @property
    def latent_part(self) -> ir.Value:
        """The rows that hold c_kv: all of them when packed, none beyond its half when even."""
        return self.parts[0]


def store_rows(
    tape: BodyTape,
    signature: Signature,
    inputs: Mapping[str, ir.Value],
    style: BodyStyle,
    before_rope: str = "kv_lora_rank",
) -> Rows:
    """Record what makes the rows that the queries attend to, the new ones included.

    ``before_rope`` is the attribute that counts the dims of the query before its rotary part.
    """
    past_len = valid = _past_len(tape, signature, inputs)
    if past_len is not None and signature.has_latent:
        valid = tape.op("Add", past_len, tape.size(inputs["latent"], 2))
    if signature.codes != "none":
        quantized = QuantizedRows(tape, signature, inputs, before_rope)
        codes, beside = quantized.past()
        if signature.has_latent:
            codes, beside = _joined(tape, (codes, beside), quantized.new(), past_len, style)
        return Rows(quantized.parts(codes, beside), quantized.stored(codes, beside), valid)
    half = tape.sizes(inputs["cache"], 3) if signature.even else None
    stored = _stored(tape, signature, inputs, past_len, style, half)
    parts = tuple(tape.like_query(part) for part in stored) if signature.narrow else stored
    return Rows(parts, stored, valid, half)


def _stored(
    tape: BodyTape,
    signature: Signature,
    inputs: Mapping[str, ir.Value],
    past_len: ir.Value | None,
    style: BodyStyle,
    half: ir.Value | None,
) -> tuple[ir.Value, ...]:
    """Return the rows in the type and the layout of the cache."""
    if not signature.has_cache:
        return (inputs["latent"],)
    names = ("cache", "rope_cache") if signature.split else ("cache",)
    past = tuple(inputs[name] for name in names)
    if not signature.has_latent:
        return past
    new = _parts(tape, signature, inputs["latent"], half)
    if signature.narrow:
        new = tuple(tape.like(rows, past[0]) for rows in new)
    return _joined(tape, past, new, past_len, style)


def _joined(
    tape: BodyTape,
    past: tuple[ir.Value, ...],
    new: tuple[ir.Value, ...],
    past_len: ir.Value | None,
    style: BodyStyle,
) -> tuple[ir.Value, ...]:
    """Return the past rows with the new ones behind them, or at their place in the buffers."""
    if past_len is None:
        return tuple(tape.op("Concat", a, b, axis=2) for a, b in zip(past, new))
    if style.tensor_scatter and tape.opset_version >= TENSOR_SCATTER_SINCE:
        return tuple(
            tape.op("TensorScatter", buffer, rows, past_len, axis=2)
            for buffer, rows in zip(past, new)
        )
    return _scatter(tape, past, new, past_len)


def _past_len(
    tape: BodyTape, signature: Signature, inputs: Mapping[str, ir.Value]
) -> ir.Value | None:
    """Return the lengths as the int64 that index arithmetic needs."""
    if not signature.in_place:
        return None
    return tape.op("Cast", inputs["past_len"], to=int(ir.DataType.INT64))


def _parts(
    tape: BodyTape, signature: Signature, latent: ir.Value, half: ir.Value | None
) -> tuple[ir.Value, ...]:
    """Return the new rows in the layout of the cache."""
    if not signature.split:
        return (latent,)
    cut = tape.int_attribute("kv_lora_rank") if half is None else half
    return tape.columns_before(latent, cut), tape.columns_from(latent, cut)


def _scatter(
    tape: BodyTape, past: tuple[ir.Value, ...], new: tuple[ir.Value, ...], past_len: ir.Value
) -> tuple[ir.Value, ...]:
    """Write the new rows into the buffers, each sequence at its own length."""
    where = _positions(tape, new[0], past_len)
    return tuple(tape.op("ScatterND", buffer, where, rows) for buffer, rows in zip(past, new))


def _positions(tape: BodyTape, new: ir.Value, past_len: ir.Value) -> ir.Value:
    """Return the index (b, 0, past_len[b] + i) of every new row, [B, 1, L, 3]."""
    zero = tape.index(0)
    offsets = tape.count(zero, tape.size(new, 2))
    rows = tape.op("Add", tape.reshape(past_len, -1, 1, 1, 1), tape.reshape(offsets, -1, 1))
    batch = tape.reshape(tape.count(zero, tape.size(new, 0)), -1, 1, 1, 1)
    zeros = tape.op("Sub", rows, rows)
    return tape.op("Concat", tape.op("Add", batch, zeros), zeros, rows, axis=3)
