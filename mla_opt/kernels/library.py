"""The compiled library: found, checked, and asked for what it holds."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

from mla_opt.errors import InputError, KernelUnavailableError
from mla_opt.kernels.building.build import LIBRARY

ABI_VERSION = 4
_REMEDY = "install a C++ compiler and run `python -m mla_opt.kernels`"


def kernel_library() -> Path:
    """Return the path of the library that ONNX Runtime registers.

    Raises:
        KernelUnavailableError: it was not built, or does not fit this machine or this release.
    """
    load_library()
    return LIBRARY


def kernel_available() -> bool:
    """Whether there is a library that this machine and this release can use."""
    try:
        load_library()
    except KernelUnavailableError:
        return False
    return True


def cpu_tiers() -> tuple[str, ...]:
    """Return the instruction-set tiers that this machine can run, best first."""
    return tuple(_text(load_library().mla_opt_cpu_tiers).split())


def cpu_tier() -> str:
    """Return the tier in use: the best, or what ``MLA_OPT_CPU_TIER`` or `use_cpu_tier` named."""
    return _text(load_library().mla_opt_cpu_tier)


def has_matmul_nbits() -> bool:
    """Whether the tier in use runs ``mla_opt::MatMulNBits``; else ONNX Runtime's operator does."""
    return bool(load_library().mla_opt_matmul_nbits_runs_here())


def use_cpu_tier(name: str | None) -> None:
    """Use the tier ``name`` from the next call on, in this process; None: the best.

    Raises:
        InputError: this machine cannot run it.
    """
    if load_library().mla_opt_use_cpu_tier(None if name is None else name.encode()):
        raise InputError(f"no CPU tier {name!r} on this machine; it has {', '.join(cpu_tiers())}")


def _text(function: ctypes._NamedFuncPointer) -> str:
    function.restype = ctypes.c_char_p
    value: bytes = function()
    return value.decode()


@functools.cache
def load_library() -> ctypes.CDLL:
    """Return the library, loaded.

    Raises:
        KernelUnavailableError: as `kernel_library`.
    """
    if not LIBRARY.exists():
        raise KernelUnavailableError(
            f"the kernel library {LIBRARY} was not built when mla-opt was installed: {_REMEDY}"
        )
    try:
        library = ctypes.CDLL(os.fspath(LIBRARY))
        version = int(library.mla_opt_kernel_abi_version())
    except (OSError, AttributeError) as error:
        raise KernelUnavailableError(
            f"the kernel library {LIBRARY} cannot be loaded: {error}; {_REMEDY}"
        ) from error
    if version != ABI_VERSION:
        raise KernelUnavailableError(
            f"the kernel library {LIBRARY} has ABI version {version}, this release needs"
            f" {ABI_VERSION}: {_REMEDY}"
        )
    return library
