"""The GPU that TensorRT would use, asked of the driver; needs nothing but the driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from mla_opt.errors import InputError

LIBRARY = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU: its name, and its compute capability as one number, 90 for 9.0."""

    name: str
    compute_capability: int


def current_device() -> Device:
    """Return the first GPU that is visible.

    Raises:
        InputError: there is no driver, or no GPU.
    """
    try:
        driver = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise InputError(f"there is no CUDA driver: {error}") from error
    count, device = ctypes.c_int(), ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        raise InputError(f"the CUDA driver finds no GPU (error {code})")
    name, numbers = ctypes.create_string_buffer(256), (ctypes.c_int(), ctypes.c_int())
    code = driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device)
    for number, attribute in zip(numbers, (_MAJOR, _MINOR)):
        code = code or driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    if code:
        raise InputError(f"the CUDA driver does not describe its GPU (error {code})")
    return Device(name.value.decode(errors="replace"), 10 * numbers[0].value + numbers[1].value)
