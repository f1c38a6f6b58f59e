"""Tensors between NumPy and ONNX Runtime, bfloat16 and floats of 8 bits among them.

ONNX Runtime's Python interface knows no NumPy types for these: their tensors are made from their
bits, and read by their address.
"""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

Array = npt.NDArray[Any]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Types that are given by their bits, with ONNX's number for each.
BY_BITS = {
    BFLOAT16: onnx.TensorProto.BFLOAT16,
    np.dtype(ml_dtypes.float8_e4m3fn): onnx.TensorProto.FLOAT8E4M3FN,
    np.dtype(ml_dtypes.float8_e4m3fnuz): onnx.TensorProto.FLOAT8E4M3FNUZ,
    np.dtype(ml_dtypes.float8_e5m2): onnx.TensorProto.FLOAT8E5M2,
    np.dtype(ml_dtypes.float8_e5m2fnuz): onnx.TensorProto.FLOAT8E5M2FNUZ,
}
#: Bytes of a cache line. Tensors of ONNX Runtime's own begin with one, NumPy's arrays need not: a
#: kernel that reads rows by whole lines then reads two for one.
LINE = 64


def to_ort_value(array: Array) -> ort.OrtValue:
    """Return a tensor that may share the array's memory: keep the array while it is used."""
    kind = BY_BITS.get(array.dtype)
    if kind is None:
        return ort.OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def aligned_zeros(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return zeros whose memory begins with a cache line; pages take none before they are used."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape))
    memory = np.zeros(count * kind.itemsize + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + count * kind.itemsize].view(kind).reshape(shape)


def aligned(array: Array) -> Array:
    """Return the array, or a copy of it, in memory that begins with a cache line."""
    if array.ctypes.data % LINE == 0 and array.flags.c_contiguous:
        return array
    copy = aligned_zeros(array.shape, array.dtype)
    copy[...] = array
    return copy


def from_ort_value(value: ort.OrtValue) -> Array:
    """Return a copy of a tensor on the CPU."""
    kinds = {number: kind for kind, number in BY_BITS.items()}
    kind = kinds.get(value.element_type())
    if kind is None:
        array: Array = value.numpy()
        return array
    shape = value.shape()
    size = kind.itemsize * int(np.prod(shape))
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, kind).reshape(shape)
