"""Run the command line as a person does: in a process of its own.

That is a fork of one in which everything is imported; where the process is to be prepared before
it starts, it is a new one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.end_to_end.forked import server
from tests.exports.cache import ROOT

#: What the `mla-opt` script does, from this checkout, installed or not.
PROGRAM = (sys.executable, "-c", "from mla_opt.cli import main; main()")
TIMEOUT = 300
Done = subprocess.CompletedProcess[str]


def environment(**variables: str) -> dict[str, str]:
    """Plain output of a fixed width, and this checkout first on the path."""
    plain = {name: value for name, value in os.environ.items() if name != "MLA_OPT_DEBUG"}
    return {**plain, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **variables}


def command(
    *arguments: Any, cwd: Path | None = None, preexec: Callable[[], None] | None = None
) -> Done:
    """Call ``mla-opt`` with `arguments`, after `preexec` in a process that is new."""
    if preexec is None:
        return server(str(ROOT)).run([*map(str, arguments)], environment(), cwd, TIMEOUT)
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        preexec_fn=preexec,
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
