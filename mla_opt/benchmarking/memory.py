"""What a process takes of memory, as Linux tells it. All figures are in MB of 2^20 bytes."""

from __future__ import annotations

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MACHINE, _KILL_ORDER = Path("/proc/meminfo"), Path("/proc/self/oom_score_adj")


def memory(field: str) -> float:
    """Return `VmRSS` or `VmHWM` of this process.

    Raises:
        KeyError: there is no such field.
    """
    return _field(_STATUS, field)


def available() -> float:
    """Return what the machine could still give out without swapping."""
    return _field(_MACHINE, "MemAvailable")


def reset_peak() -> None:
    """Make `VmHWM` start again from what is resident now."""
    _CLEAR.write_text("5")


def die_first() -> None:
    """Ask to be the one that is killed if the machine runs out of memory."""
    _KILL_ORDER.write_text("1000")


def _field(path: Path, field: str) -> float:
    for line in path.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)
