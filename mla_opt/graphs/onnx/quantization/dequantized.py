"""Small stored tensors that a graph dequantizes: quantizers do that to scalars, too."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mla_opt.handles import Array


def dequantized(value: ir.Value, most: int) -> Array | None:
    """What DequantizeLinear makes of at most so many stored integers, where one scale is all."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    parts = [_stored(each, most) for each in node.inputs]
    if len(parts) < 2 or any(part is None for part in parts[:2]):
        return None
    stored, scale = parts[0], parts[1]
    zero = parts[2] if len(parts) > 2 else np.zeros(())
    if stored is None or scale is None or scale.size != 1 or zero is None or zero.size != 1:
        return None
    kind = scale.dtype
    numbers = stored.astype(np.float64) - zero.reshape(()).astype(np.float64)
    made: Array = numbers.astype(kind) * scale.reshape(())
    return made


def _stored(value: ir.Value | None, most: int) -> Array | None:
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None or tensor.size > most else np.asarray(tensor.numpy())
