"""The few functions of CUDA's driver that the tests and the benchmark need, by ctypes."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

DRIVER = "libcuda.so.1"
MULTIPROCESSORS, MAJOR, MINOR, L2_BYTES = 16, 75, 76, 38
GLOBAL_CAPTURE = 0


class DriverError(Exception):
    """A call of the driver failed."""


def device_reason() -> str | None:
    """Why there is no GPU to use; None when there is one."""
    try:
        Device()
    except (OSError, DriverError) as error:
        return f"no GPU: {error}"
    return None


class Device:
    """The first GPU, its primary context current: the one that CUDA's runtime uses too."""

    def __init__(self, driver: str = DRIVER) -> None:
        self._driver = ctypes.CDLL(driver)
        self._call("cuInit", 0)
        self._device, context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self._call("cuCtxSetCurrent", context)

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status:
            text = c_char_p()
            self._driver.cuGetErrorString(status, byref(text))
            raise DriverError(f"{name}: {(text.value or b'unknown').decode()} ({status})")

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    @property
    def name(self) -> str:
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, 256, self._device)
        return text.value.decode()

    @property
    def architecture(self) -> str:
        return f"{self._attribute(MAJOR)}{self._attribute(MINOR)}"

    @property
    def multiprocessors(self) -> int:
        return self._attribute(MULTIPROCESSORS)

    @property
    def l2_bytes(self) -> int:
        return self._attribute(L2_BYTES)

    def free_bytes(self) -> int:
        free, total = c_size_t(), c_size_t()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return free.value

    def synchronize(self) -> None:
        """Wait for everything; what went wrong in a kernel is raised here."""
        self._call("cuCtxSynchronize")

    # ---- memory

    def allocate(self, size: int) -> Memory:
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(max(size, 16)))
        return Memory(self, address.value, size)

    def upload(self, array: np.ndarray) -> Memory:
        memory = self.allocate(array.nbytes)
        dense = np.ascontiguousarray(array)
        if array.nbytes:
            self._call(
                "cuMemcpyHtoD_v2",
                c_uint64(memory.address),
                c_void_p(dense.ctypes.data),
                c_size_t(array.nbytes),
            )
        return memory

    def download(self, memory: Memory, like: np.ndarray) -> np.ndarray:
        array = np.empty(like.shape, like.dtype)
        if array.nbytes:
            self._call(
                "cuMemcpyDtoH_v2",
                c_void_p(array.ctypes.data),
                c_uint64(memory.address),
                c_size_t(array.nbytes),
            )
        return array

    def copy(self, to: int, source: int, size: int, stream: int = 0) -> None:
        self._call(
            "cuMemcpyDtoDAsync_v2", c_uint64(to), c_uint64(source), c_size_t(size), c_void_p(stream)
        )

    def release(self, address: int) -> None:
        self._call("cuMemFree_v2", c_uint64(address))

    # ---- streams, graphs, time

    def stream(self) -> int:
        handle = c_void_p()
        self._call("cuStreamCreate", byref(handle), c_uint(1))
        return handle.value or 0

    @contextlib.contextmanager
    def captured(self, stream: int) -> Iterator[Graph]:
        """What is started on ``stream`` inside becomes a graph."""
        graph = Graph(self)
        self._call("cuStreamBeginCapture_v2", c_void_p(stream), c_int(GLOBAL_CAPTURE))
        yield graph
        template = c_void_p()
        self._call("cuStreamEndCapture", c_void_p(stream), byref(template))
        self._call("cuGraphInstantiateWithFlags", byref(graph.handle), template, c_uint64(0))
        self._call("cuGraphDestroy", template)

    def seconds(self, work: Callable[[], None], stream: int) -> float:
        """Seconds between events before and after ``work`` on ``stream``."""
        events = []
        for turn in range(2):
            event = c_void_p()
            self._call("cuEventCreate", byref(event), c_uint(0))
            events.append(event)
            if turn:
                work()
            self._call("cuEventRecord", event, c_void_p(stream))
        self._call("cuEventSynchronize", events[1])
        elapsed = c_float()
        time_of = (
            "cuEventElapsedTime_v2"
            if hasattr(self._driver, "cuEventElapsedTime_v2")
            else "cuEventElapsedTime"
        )
        self._call(time_of, byref(elapsed), *events)
        for event in events:
            self._call("cuEventDestroy_v2", event)
        return elapsed.value / 1000


class Memory:
    """Memory on the device; freed with this object."""

    def __init__(self, device: Device, address: int, size: int) -> None:
        self._device = device
        self.address = address
        self.size = size

    def __del__(self) -> None:
        with contextlib.suppress(DriverError):
            self._device.release(self.address)


class Graph:
    """Work that was captured, to be started again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.handle = c_void_p()

    def launch(self, stream: int) -> None:
        self._device._call("cuGraphLaunch", self.handle, c_void_p(stream))

    def __del__(self) -> None:
        with contextlib.suppress(DriverError):
            self._device._call("cuGraphExecDestroy", self.handle)
