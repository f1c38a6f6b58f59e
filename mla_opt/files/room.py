"""Room in memory where the system limits it (``ulimit -v``): asked for before it is taken.

Libraries of C and C++ below this one do not all say that there is no memory: some end the process.
"""

from __future__ import annotations

import resource
from pathlib import Path

_USUAL = 64 << 20
"""Bytes besides: buffers, threads, the objects of a small model."""

LEAST = 512 << 20
"""Bytes of addresses that the libraries take for themselves, with some threads."""


def require_limit() -> None:
    """Check that the address space is not limited below what the libraries need for themselves.

    Raises:
        MemoryError: it is.
    """
    limit = _limit()
    if limit is not None and limit < LEAST:
        raise MemoryError(
            f"the process may have {limit >> 20} MiB of addresses (ulimit -v), and the libraries"
            f" that read models end without a word below {LEAST >> 20} MiB"
        )


def require_room(needed: int, what: str) -> None:
    """Check that ``needed`` bytes of addresses are left, where there is a limit.

    Raises:
        MemoryError: they are not; it says ``what`` they are for.
    """
    limit = _limit()
    if limit is None:
        return
    left = limit - _taken()
    if left < needed + _USUAL:
        raise MemoryError(
            f"{what} takes {(needed + _USUAL) >> 20} MiB, and {max(left, 0) >> 20} MiB of addresses"
            " are left (ulimit -v)"
        )


def available() -> int | None:
    """Bytes of memory that can be had without taking them from others; ``None`` if not told."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    told = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    found = next(told, None)
    return None if found is None else int(found) << 10


def _limit() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def _taken() -> int:
    """Bytes of addresses that the process has; none where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * resource.getpagesize()
