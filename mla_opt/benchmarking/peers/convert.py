"""Making what a peer reads from a transformers folder, once for a run, in a process of its own.

A conversion loads the model and its framework; done in the peer's process, their memory would be
taken for the peer's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

#: Characters of an error message that are shown.
LONGEST = 300


class ConversionError(Exception):
    """A model could not be converted; says why."""


def converted(module: str, arguments: Sequence[str], target: Path) -> Path:
    """Return `target`, made by `python -m MODULE ARGUMENTS TARGET` where it is not there yet.

    Raises:
        ConversionError: that failed, now or before in this run.
    """
    failure = target.with_name(f"{target.name}.failed")
    if failure.exists():
        raise ConversionError(failure.read_text())
    if not target.exists():
        command = [sys.executable, "-m", module, *arguments, str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            failure.write_text(f"cannot be converted: {lines[-1][:LONGEST]}")
            raise ConversionError(failure.read_text())
    return target
