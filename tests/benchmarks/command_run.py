"""Run one command of mla-opt in a process of its own, and say what it took.

    python -m tests.benchmarks.command_run optimize MODEL -o NEW --no-verify

What the command prints goes to the error stream; the last line is JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence

from mla_opt.benchmarking.memory import memory


@dataclasses.dataclass(frozen=True)
class Took:
    """What a command took, without the start of Python; MB are of 2^20 bytes."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def run(arguments: Sequence[str]) -> Took:
    """Run it elsewhere. Raises `SystemExit` with all it said where it ends with an error."""
    command = [sys.executable, "-m", "tests.benchmarks.command_run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return Took(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: Sequence[str]) -> None:
    """Run it here."""
    from mla_opt.cli import main as command

    start = time.perf_counter()
    sys.argv[1:] = arguments
    try:
        with contextlib.redirect_stdout(sys.stderr):
            command()
    except SystemExit as end:
        if end.code:
            raise
    took = Took(time.perf_counter() - start, time.process_time(), memory("VmHWM"))
    print(json.dumps(dataclasses.asdict(took)))


if __name__ == "__main__":
    main(sys.argv[1:])
