"""Stored tensors that were made here: of an array or a tensor, as it becomes when it is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from mla_opt.aside import is_large, let_go
from mla_opt.handles import Array


def tensor_of(array: Array, dtype: np.dtype[Any], name: str) -> ir.TensorProtocol:
    """A tensor of an array in a type; a large one that has to be made takes no memory by itself."""
    as_it_is = array.flags.c_contiguous and array.dtype == dtype
    if as_it_is or not is_large(array):
        return ir.Tensor(np.asarray(array, dtype, order="C"), name=name)
    return ir.LazyTensor(
        lambda: ir.Tensor(_made(array, dtype), name=name),
        ir.DataType.from_numpy(dtype),
        ir.Shape(array.shape),
        name=name,
    )


def cast_tensor(tensor: ir.TensorProtocol, to: ir.DataType, name: str | None) -> ir.TensorProtocol:
    """The same numbers in another type, made anew whenever they are asked for."""

    def content() -> ir.TensorProtocol:
        return ir.Tensor(tensor.numpy().astype(to.numpy()), name=name)

    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(content, dtype=to, shape=shape, name=name)


def called(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """The same content under another name; of a message that somebody gave, the name is theirs."""
    if isinstance(tensor, ir.ExternalTensor):
        return tensor
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=name)


def _made(array: Array, dtype: np.dtype[Any]) -> Array:
    """The array in its order of memory and another type; what it was made of is let go."""
    made = np.ascontiguousarray(array).astype(dtype, copy=False)
    let_go(array)
    return made
