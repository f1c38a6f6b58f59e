"""Stored integers of less than 8 bits, which ONNX Runtime takes as part of a file only.

Where nothing but DequantizeLinear reads them, the same numbers in 8 bits dequantize to the same.
Anything else may read more into their type than their numbers (GatherBlockQuantized takes 8 bits
for packed ones), so that there they stay what they are.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mla_opt.handles import Array

_MOVES = frozenset(
    {"Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)


def is_narrow(kind: ir.DataType | None) -> bool:
    """Whether a type is one of integers of less than 8 bits."""
    return kind is not None and kind.is_integer() and kind.bitwidth < 8


def in_eight_bits(value: ir.Value, content: Array) -> Array | None:
    """The same numbers in 8 bits; ``None`` where a reader may take them for something else."""
    tensor = value.const_value
    if tensor is None or not is_narrow(tensor.dtype) or not _is_only_dequantized(value):
        return None
    return content.astype(np.int8 if tensor.dtype.is_signed() else np.uint8)


def _is_only_dequantized(value: ir.Value) -> bool:
    """Whether all that becomes of the numbers is a DequantizeLinear, maybe in another order."""
    pending, seen = [value], {value}
    while pending:
        for node in pending.pop().consumers():
            if node.domain or node.op_type not in {"DequantizeLinear", *_MOVES}:
                return False
            if node.op_type == "DequantizeLinear":
                continue
            fresh = [each for each in node.outputs if each not in seen]
            seen.update(fresh)
            pending.extend(fresh)
    return True
