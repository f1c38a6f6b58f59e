"""compute-sanitizer over a few problems, where it is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
COMMAND = (sys.executable, "-m", "tests.gpu", "--only", "quick")
# Less than this is not worth a start.
LEAST_SECONDS = 5.0


def find() -> str | None:
    """The path of the tool."""
    folders = os.pathsep.join(("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=folders)


def run(most: float, until: float) -> Iterator[tuple[str, bool | None, str]]:
    """Each tool, whether it was content (None: it could not run), and the end of what it said.

    A tool may take ``most`` seconds, and none what the clock has not left until ``until``.
    """
    tool = find()
    if tool is None:
        yield "compute-sanitizer", None, "not there"
        return
    for name in TOOLS:
        timeout = min(most, until - time.monotonic())
        if timeout < LEAST_SECONDS:
            yield name, None, "no time left"
            continue
        command = [tool, "--tool", name, "--error-exitcode", "99", *COMMAND]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            yield name, None, f"no end within {timeout:.0f} s"
            continue
        said = " ".join((done.stdout + done.stderr).split())[-400:]
        unsupported = "not supported" in said
        yield name, None if unsupported else done.returncode == 0, said
