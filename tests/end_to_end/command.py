"""Run the command line as a person does: in a process of its own.

That is a fork of one in which everything is imported; where the process is to be prepared before
it starts, it is a new one.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from mla_opt import passes
from tests import forked

#: What the `mla-opt` script does, from this checkout, installed or not.
PROGRAM = (sys.executable, "-c", "from mla_opt.cli import main; main()")
TIMEOUT = 300
Done = subprocess.CompletedProcess[str]

#: What commands import while they run, beside passes.
IMPORTED = (
    "mla_opt.api",
    "mla_opt.cli",
    "mla_opt.report.inspection",
    "mla_opt.report.terminal",
    "mla_opt.subject.onnx_model",
    "mla_opt.verification.drift",
    "mla_opt.verification.onnx.breaking",
    "mla_opt.verification.verifier",
    "rich.console",
    "rich.table",
    "sympy",
)


def environment(**variables: str) -> dict[str, str]:
    """Plain output of a fixed width, and this checkout first on the path."""
    plain = {name: value for name, value in os.environ.items() if name != "MLA_OPT_DEBUG"}
    return {**plain, "PYTHONPATH": str(forked.ROOT), "COLUMNS": "120", **variables}


def command(
    *arguments: Any, cwd: Path | None = None, preexec: Callable[[], None] | None = None
) -> Done:
    """Call ``mla-opt`` with `arguments`, after `preexec` in a process that is new."""
    texts = [str(each) for each in arguments]
    if preexec is None:
        places = {"environment": environment(), "cwd": cwd or Path.cwd()}
        return forked.run(context(), _program, texts, timeout=TIMEOUT, **places)
    return subprocess.run(
        [*PROGRAM, *texts],
        cwd=cwd,
        env=environment(),
        preexec_fn=preexec,
        timeout=TIMEOUT,
        capture_output=True,
        text=True,
        check=False,
    )


def _program(*arguments: str) -> None:
    from mla_opt.cli import main

    sys.argv = ["-c", *arguments]
    main()


@functools.cache
def context() -> ForkServerContext:
    """Processes in which everything that commands import is there."""
    return forked.context([*IMPORTED, *(f"mla_opt.passes.{name}" for name in passes.BUILT_IN)])


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
