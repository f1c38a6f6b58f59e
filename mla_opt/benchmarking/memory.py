"""What a process takes of memory, as Linux tells it. All figures are in MB of 2^20 bytes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

_MAPS = Path("/proc/self/smaps")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MACHINE, _KILL_ORDER = Path("/proc/meminfo"), Path("/proc/self/oom_score_adj")


def memory(field: str) -> float:
    """Return `VmRSS` or `VmHWM` of this process.

    Raises:
        KeyError: there is no such field.
    """
    return _field(_STATUS, field)


def resident_of(files: Collection[Path]) -> float:
    """Return what is resident of files that are mapped.

    Weights that lie beside a model are: their pages come in when they are first read, and not when
    the model is loaded.
    """
    wanted = {str(file.resolve()) for file in files}
    total, counts = 0, False
    for line in _MAPS.read_text().splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            counts = len(words) == 6 and words[5] in wanted
        elif counts and words[0] == "Rss:":
            total += int(words[1])
    return total / 1024


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
