"""The few calls of CUDA's runtime that an engine needs, with every error raised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.verification.running import RunError

Array = npt.NDArray[Any]


class Cuda:
    """One stream, and memory on the current device.

    Addresses are numbers. Copies and launches are queued on the stream; `wait` waits for them.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.stream = self._call("cudaStreamCreate")

    def allocate(self, size: int) -> int:
        """Return the address of so many bytes."""
        return int(self._call("cudaMalloc", max(size, 1)))

    def free(self, address: int) -> None:
        """Give back what `allocate` returned."""
        self._call("cudaFree", address)

    def zero(self, address: int, size: int) -> None:
        """Fill with zeros."""
        self._call("cudaMemsetAsync", address, 0, size, self.stream)

    def copy_in(self, address: int, array: Array) -> None:
        """Copy to the device an array that is contiguous, and lives until `wait`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        size, source = array.nbytes, array.ctypes.data
        self._call("cudaMemcpyAsync", address, source, size, kind, self.stream)

    def copy_out(self, array: Array, address: int) -> None:
        """Fill an array from the device; it is filled after `wait`."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        size, target = array.nbytes, array.ctypes.data
        self._call("cudaMemcpyAsync", target, address, size, kind, self.stream)

    def wait(self) -> None:
        """Wait for all that was queued."""
        self._call("cudaStreamSynchronize", self.stream)

    def record(self, action: Callable[[], None]) -> Any:
        """Return the graph of what ``action`` queues; nothing of it is run."""
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            action()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        try:
            return self._call("cudaGraphInstantiate", graph, 0)
        finally:
            self._call("cudaGraphDestroy", graph)

    def replay(self, recorded: Any) -> None:
        """Queue a graph."""
        self._call("cudaGraphLaunch", recorded, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        error, *results = getattr(self._runtime, name)(*arguments)
        if int(error):
            raise RunError(f"{name} failed: {error}")
        return results[0] if results else None


def open_cuda() -> Cuda:
    """Return CUDA on the current device.

    Raises:
        InputError: its Python binding is not installed.
        RunError: there is no device.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise InputError(
            f"CUDA's runtime cannot be imported ({error}): pip install cuda-bindings"
        ) from error
    return Cuda(runtime)
