"""What the device can do at most: bytes copied and products made, each in a second."""

from __future__ import annotations

import contextlib
import ctypes
import statistics
from ctypes import byref, c_float, c_int, c_void_p

import numpy as np

from tests.gpu.driver import Device

COPY_BYTES = 1 << 31
SIDE = 8192
_HALF, _FLOAT_SUMS, _DEFAULT = 2, 68, -1


def copy_rate(device: Device, size: int = COPY_BYTES) -> float:
    """Bytes a second of a large copy on the device, read and written counted."""
    source, to, stream = device.allocate(size), device.allocate(size), device.stream()
    seconds = [
        device.seconds(lambda: device.copy(to.address, source.address, size, stream), stream)
        for _ in range(7)
    ]
    return 2 * size / statistics.median(seconds[2:])


def product_rate(device: Device, side: int = SIDE) -> float | None:
    """Operations a second of a large float16 matrix product of cuBLAS; None without cuBLAS."""
    blas = _cublas()
    if blas is None:
        return None
    random = np.random.default_rng(0).standard_normal((side, side), np.float32)
    left, right = (device.upload(half) for half in (random.astype(np.float16),) * 2)
    result, stream = device.allocate(2 * side * side), device.stream()
    handle, one, zero = c_void_p(), c_float(1), c_float(0)
    if blas.cublasCreate_v2(byref(handle)):
        return None
    blas.cublasSetStream_v2(handle, c_void_p(stream))

    def multiply() -> None:
        status = blas.cublasGemmEx(
            handle,
            c_int(0),
            c_int(0),
            *(c_int(side),) * 3,
            byref(one),
            c_void_p(left.address),
            c_int(_HALF),
            c_int(side),
            c_void_p(right.address),
            c_int(_HALF),
            c_int(side),
            byref(zero),
            c_void_p(result.address),
            c_int(_HALF),
            c_int(side),
            c_int(_FLOAT_SUMS),
            c_int(_DEFAULT),
        )
        if status:
            raise RuntimeError(f"cublasGemmEx: {status}")

    seconds = [device.seconds(multiply, stream) for _ in range(9)]
    blas.cublasDestroy_v2(handle)
    return 2 * side**3 / statistics.median(seconds[3:])


def _cublas() -> ctypes.CDLL | None:
    # Where torch is, it brings a cuBLAS that only it knows the place of.
    with contextlib.suppress(ImportError, OSError):
        import torch

        torch.cuda.init()
    for name in ("libcublas.so.13", "libcublas.so.12", "libcublas.so"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None
