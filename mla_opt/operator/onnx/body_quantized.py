"""The part of a function body that quantizes new latent rows, and reads quantized ones.

    latent --+-- c_kv --> scales of blocks of 128 --> codes     (new rows of cache)
             +-- k_pe, scales, zeros                            (new rows of rope_cache)

    codes * scales by column --> c_kv [B, 1, T, C]              (what is attended to)

Codes are moved as numbers of the query's type, which holds them all: ONNX Runtime's CPU provider
can only convert floats of 8 bits. The arithmetic is that of
:mod:`mla_opt.operator.quantized_rows`, step by step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.operator.contract import OP_TYPE, Signature
from mla_opt.operator.onnx.body_tape import BodyTape
from mla_opt.operator.quantized_rows import CODES_PER_SCALE, LARGEST_CODE

FLOAT8_SINCE = 19


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """Quantizes rows for one body, and reads them.

    ``before_rope`` is the attribute that counts the dims of the query before its rotary part.
    """

    tape: BodyTape
    signature: Signature
    inputs: Mapping[str, ir.Value]
    before_rope: str

    def __post_init__(self) -> None:
        opset = self.tape.opset_version
        if self.signature.codes == "float8_e4m3fn" and opset < FLOAT8_SINCE:
            raise InputError(
                f"{OP_TYPE}: a cache of 8-bit floats needs opset {FLOAT8_SINCE}; the model has"
                f" {opset}"
            )

    def past(self) -> tuple[ir.Value, ir.Value]:
        """Codes as numbers, and what is beside them."""
        return self.tape.like_query(self.inputs["cache"]), self.inputs["rope_cache"]

    def new(self) -> tuple[ir.Value, ir.Value]:
        """The same of the new rows."""
        tape, rank = self.tape, self.tape.int_attribute("kv_lora_rank")
        c_kv = tape.columns_before(self.inputs["latent"], rank)
        k_pe = tape.columns_from(self.inputs["latent"], rank)
        kept = tape.like(self._scales(c_kv), self.inputs["rope_cache"])
        scales = tape.like_query(kept)
        return self._codes(c_kv, scales), self._beside(k_pe, scales)

    def parts(self, codes: ir.Value, beside: ir.Value) -> tuple[ir.Value, ir.Value]:
        """``c_kv`` and ``k_pe`` of rows, in the query's type."""
        tape, rope = self.tape, self._rope_dim()
        numbers = tape.like_query(beside)
        end = tape.op("Add", rope, self._scale_count())
        scales = tape.op("Slice", numbers, rope, end, tape.ints(3))
        c_kv = tape.op("Mul", codes, self._by_column(scales))
        return c_kv, tape.columns_before(numbers, rope)

    def stored(self, codes: ir.Value, beside: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Both tensors as caches keep them."""
        return self.tape.like(codes, self.inputs["cache"]), beside

    def _rope_dim(self) -> ir.Value:
        width = self.tape.sizes(self.inputs["query"], 3)
        return self.tape.op("Sub", width, self.tape.int_attribute(self.before_rope))

    def _scale_count(self) -> ir.Value:
        tape, rank = self.tape, self.tape.int_attribute("kv_lora_rank")
        filled = tape.op("Add", rank, tape.ints(CODES_PER_SCALE - 1))
        return tape.op("Div", filled, tape.ints(CODES_PER_SCALE))

    def _largest(self) -> ir.Value:
        return self.tape.element(LARGEST_CODE[self.signature.codes])

    def _scales(self, c_kv: ir.Value) -> ir.Value:
        """The largest number of each block over the largest code, before rounding."""
        tape, count = self.tape, self._scale_count()
        block = tape.ints(CODES_PER_SCALE)
        filled = self._pad(tape.op("Abs", c_kv), tape.op("Mul", count, block))
        shape = tape.op("Concat", tape.ints(0, 0, 0), count, block, axis=0)
        most = tape.reduce_max(tape.op("Reshape", filled, shape))
        return tape.op("Div", tape.op("Squeeze", most, tape.ints(4)), self._largest())

    def _codes(self, c_kv: ir.Value, scales: ir.Value) -> ir.Value:
        tape, largest = self.tape, self._largest()
        nothing = tape.op("Equal", scales, tape.element(0.0))
        steps = tape.op("Where", nothing, tape.element(1.0), scales)
        codes = tape.op("Div", c_kv, self._by_column(steps))
        codes = tape.op("Clip", codes, tape.op("Neg", largest), largest)
        if self.signature.codes == "int8":
            codes = tape.op("Round", codes)
        return tape.like_query(tape.like(codes, self.inputs["cache"]))

    def _beside(self, k_pe: ir.Value, scales: ir.Value) -> ir.Value:
        tape, kept = self.tape, self.inputs["rope_cache"]
        joined = tape.op("Concat", k_pe, scales, axis=3)
        return tape.like(self._pad(joined, tape.sizes(kept, 3)), kept)

    def _pad(self, value: ir.Value, width: ir.Value) -> ir.Value:
        """Add columns of zeros up to ``width``."""
        tape = self.tape
        missing = tape.op("Sub", width, tape.sizes(value, 3))
        ends = tape.op("Concat", tape.ints(0, 0, 0, 0, 0, 0, 0), missing, axis=0)
        return tape.op("Pad", value, ends)

    def _by_column(self, scales: ir.Value) -> ir.Value:
        """The scale of each column of rows, ``[..., C]``."""
        tape = self.tape
        scalar = tape.op("Squeeze", tape.int_attribute("kv_lora_rank"))
        columns = tape.count(tape.index(0), scalar)
        places = tape.op("Div", columns, tape.index(CODES_PER_SCALE))
        return tape.op("Gather", scales, places, axis=3)
