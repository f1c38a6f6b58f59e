"""A model's weights put in narrower types, each with a DequantizeLinear behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Storage:
    """How a matrix ``[in, out]`` is stored.

    Attributes:
        kind: the element type, by ONNX's name.
        scales: of how many numbers one is: all, a column, or as many rows of a column.
        offset: whether zero is anywhere but in the middle.
        opset: the first that dequantizes it.
    """

    kind: str
    scales: str | int = "tensor"
    offset: bool = False
    opset: int = 21

    def __str__(self) -> str:
        return f"{self.kind.lower()} by {self.scales}{', with offset' if self.offset else ''}"


def store(model: onnx.ModelProto, how: Storage) -> onnx.ModelProto:
    """Store every matrix that a MatMul reads on its right so; the model is changed."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    matrices = {
        node.input[1]: weights[node.input[1]]
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in weights
    }
    for name, tensor in matrices.items():
        model.graph.initializer.remove(tensor)
        parts, attributes = _quantized(ir.from_proto(tensor).numpy(), how)
        names = [f"{name}_{part}" for part in ("stored", "scale", "zero")[: len(parts)]]
        tensors = [ir.Tensor(each, name=each_name) for each, each_name in zip(parts, names)]
        model.graph.initializer.extend(ir.serde.serialize_tensor(each) for each in tensors)
        node = helper.make_node("DequantizeLinear", names, [name], **attributes)
        model.graph.node.insert(0, node)
    for imported in model.opset_import:
        if imported.domain == "":
            imported.version = max(imported.version, how.opset)
    model.ir_version = max(model.ir_version, 10 if how.opset < 25 else 13)
    return model


def _quantized(array: Array, how: Storage) -> tuple[list[Array], dict[str, int]]:
    """Numbers, scales and maybe zero points; and the attributes of the node."""
    kind = ir.DataType[how.kind]
    low, high = _range(kind)
    blocks, attributes = _blocks(array, how)
    lowest = np.minimum(blocks.min(axis=1), 0.0) if how.offset else -np.abs(blocks).max(axis=1)
    highest = np.maximum(blocks.max(axis=1), 0.0) if how.offset else np.abs(blocks).max(axis=1)
    scale = np.maximum((highest - lowest) / (high - low), 1e-6).astype(array.dtype)
    zero = np.round(low - lowest / scale) if how.offset else np.zeros_like(scale)
    if not how.offset and low == 0:
        zero += (high + 1) // 2
    numbers = blocks / scale[:, None] + zero[:, None]
    if kind.is_integer():
        numbers = np.clip(np.round(numbers), low, high)
    rows = numbers.reshape(-1)[: array.size].reshape(array.shape)
    parts = [rows.astype(kind.numpy()), _shaped(scale, how)]
    if kind.is_integer():
        parts.append(_shaped(zero, how).astype(kind.numpy()))
    return parts, attributes


def _blocks(array: Array, how: Storage) -> tuple[Array, dict[str, int]]:
    """The matrix as ``[blocks, rows of each, columns]``, columns apart where they have scales."""
    if how.scales == "tensor":
        return array.reshape(1, -1, 1), {}
    if how.scales == "column":
        return array[None], {"axis": 1}
    assert isinstance(how.scales, int)
    short = -array.shape[0] % how.scales
    padded = np.concatenate([array, np.zeros((short, array.shape[1]), array.dtype)])
    blocks = padded.reshape(-1, how.scales, array.shape[1])
    return blocks, {"axis": 0, "block_size": how.scales}


def _shaped(of_blocks: Array, how: Storage) -> Array:
    """One number a block, in the shape that DequantizeLinear takes."""
    if how.scales == "tensor":
        return of_blocks.reshape(())
    return of_blocks[0] if how.scales == "column" else of_blocks


def _range(kind: ir.DataType) -> tuple[float, float]:
    if kind.is_integer():
        count = 1 << int(kind.bitwidth)
        return (-(count // 2), count // 2 - 1) if kind.is_signed() else (0, count - 1)
    return (-448.0, 448.0) if "E4M3" in kind.name else (-57344.0, 57344.0)
