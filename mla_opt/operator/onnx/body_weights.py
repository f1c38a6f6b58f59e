"""The part of a function body that reads ``kv_b``: its codes, and the numbers they stand for.

    kv_b            packed: Gather( all bytes' codes, byte )        [W, C/block_size * block_size]
      | Cast float
    codes [W, C]
      | Sub zero points, Mul scales, each spread over its block
    [W, C] -> [H, N+V, C] -> Mul factors of columns -> CastLike query
      | Slice
    W_UK [H, N, C], W_UV [H, C, V]

Of constants only, so a runtime that folds constants does this once, when it loads the model. Both
forms read the matrices as they are here, so that it keeps one copy of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mla_opt.operator.kv_b import Storage
from mla_opt.operator.onnx.body_tape import BodyTape


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """``w_uk`` [H, N, C] and ``w_uv`` [H, C, V], in the query's type."""

    w_uk: ir.Value
    w_uv: ir.Value


def head_weights(tape: BodyTape, storage: Storage, inputs: Mapping[str, ir.Value]) -> HeadWeights:
    """Record the matrices of all heads."""
    weights = _numbers(tape, storage, inputs)
    # Numbers as they are become those of the query's type, and codes once they are all they are.
    factors = _factors(tape, storage, inputs)
    if factors is None or storage.kind == "plain":
        weights = tape.like_query(weights)
    nope, value = (tape.int_attribute(name) for name in ("qk_nope_head_dim", "v_head_dim"))
    rows = tape.op("Add", nope, value)
    rank = tape.int_attribute("kv_lora_rank")
    shape = tape.op("Concat", tape.ints(-1), rows, rank, axis=0)
    by_head = tape.op("Reshape", weights, shape)
    start, axis = tape.ints(0), tape.ints(1)
    w_uk = tape.op("Slice", by_head, start, nope, axis)
    turned = tape.op("Slice", by_head, nope, rows, axis)
    if factors is not None:
        w_uk, turned = (_weighed(tape, x, factors, row) for row, x in enumerate((w_uk, turned)))
    return HeadWeights(w_uk=w_uk, w_uv=tape.op("Transpose", turned, perm=[0, 2, 1]))


def _weighed(tape: BodyTape, part: ir.Value, factors: ir.Value, row: int) -> ir.Value:
    """Return rows whose columns are multiplied by a row of the factors, in the query's type."""
    of_columns = tape.op("Gather", factors, tape.ints(row), axis=0)
    return tape.like_query(tape.op("Mul", part, of_columns))


def _factors(tape: BodyTape, storage: Storage, inputs: Mapping[str, ir.Value]) -> ir.Value | None:
    """Return those of the columns, [2, C], of the type of what they multiply; None: none."""
    factors = inputs.get("kv_b_factors")
    if factors is None or storage.kind != "plain":
        return factors
    return tape.like_query(factors)


def _numbers(tape: BodyTape, storage: Storage, inputs: Mapping[str, ir.Value]) -> ir.Value:
    """Return what ``kv_b`` stores, [W, C]; plain numbers in their own type, others in float32."""
    kv_b = inputs["kv_b"]
    if storage.kind == "plain":
        return kv_b
    codes = _codes(tape, storage, kv_b)
    zeros = _zero_points(tape, storage, inputs, codes)
    if zeros is not None:
        codes = tape.op("Sub", codes, zeros)
    scales = _float(tape, inputs["kv_b_scales"])
    return tape.op("Mul", codes, _spread(tape, storage, scales, codes))


def _codes(tape: BodyTape, storage: Storage, kv_b: ir.Value) -> ir.Value:
    """Return the codes as floats, [W, C]."""
    if not storage.bits:
        return _float(tape, kv_b)
    rank = tape.int_attribute("kv_lora_rank")
    return _columns_before(tape, _unpacked(tape, kv_b, storage.bits), rank)


def _unpacked(tape: BodyTape, packed: ir.Value, bits: int) -> ir.Value:
    """Return the numbers in rows of bytes, [rows, numbers], floats."""
    every_byte = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (2**bits - 1)
    table = ir.AttrTensor("value", ir.tensor(every_byte.astype(np.float32)))
    index = tape.op("Cast", packed, to=int(ir.DataType.INT32))
    found = tape.op("Gather", tape.op("Constant", value=table), index, axis=0)
    rows = tape.sizes(packed, 0)
    return tape.op("Reshape", found, tape.op("Concat", rows, tape.ints(-1), axis=0))


def _zero_points(
    tape: BodyTape, storage: Storage, inputs: Mapping[str, ir.Value], codes: ir.Value
) -> ir.Value | None:
    """Return what to subtract from the codes, [W, C] or [1, 1]; None: nothing."""
    if storage.zero_points == "packed":
        blocks = tape.sizes(inputs["kv_b_scales"], 1)
        unpacked = _unpacked(tape, inputs["kv_b_zero_points"], storage.bits)
        return _spread(tape, storage, _columns_before(tape, unpacked, blocks), codes)
    if storage.zero_points == "plain":
        return _spread(tape, storage, _float(tape, inputs["kv_b_zero_points"]), codes)
    if storage.bits:
        middle = np.array([[2.0 ** (storage.bits - 1)]], np.float32)
        return tape.op("Constant", value=ir.AttrTensor("value", ir.tensor(middle)))
    return None


def _spread(tape: BodyTape, storage: Storage, blocks: ir.Value, codes: ir.Value) -> ir.Value:
    """Return the number of its block for every element, [W, C]."""
    counts = tape.op("Shape", blocks)
    one, of_rows, of_columns = (
        tape.ints(number) for number in (1, storage.block_rows, storage.block_size)
    )
    rows, columns = (tape.op("Gather", counts, tape.ints(axis)) for axis in (0, 1))
    apart = tape.op("Reshape", blocks, tape.op("Concat", rows, one, columns, one, axis=0))
    wide = tape.op("Concat", rows, of_rows, columns, of_columns, axis=0)
    joined = tape.op(
        "Concat", tape.op("Mul", rows, of_rows), tape.op("Mul", columns, of_columns), axis=0
    )
    whole = tape.op("Reshape", tape.op("Expand", apart, wide), joined)
    return tape.op("Slice", whole, tape.ints(0, 0), tape.op("Shape", codes), tape.ints(0, 1))


def _columns_before(tape: BodyTape, rows: ir.Value, stop: ir.Value) -> ir.Value:
    return tape.op("Slice", rows, tape.ints(0), stop, tape.ints(1))


def _float(tape: BodyTape, value: ir.Value) -> ir.Value:
    return tape.op("Cast", value, to=int(ir.DataType.FLOAT))
