"""Processes that start as forks of one that has imported everything: a start takes no time.

Importing is half of what a command on a small model takes, and most of what a row of the coverage
table does. What a process is told to import it finds imported; the rest it imports itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def context(imported: Iterable[str]) -> ForkServerContext:
    """Processes that have these modules imported; the first call of a process decides for all.

    `pytest` is among them: it is the main module of those who test, which is imported anew.
    """
    found = get_context("forkserver")
    found.set_forkserver_preload([*imported, "pytest"])
    return found


def run(
    context: ForkServerContext,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    environment: Mapping[str, str],
    cwd: Path,
    timeout: float,
) -> CompletedProcess[str]:
    """Call `function` in a process of its own; its exit status, and what it wrote.

    Raises:
        TimeoutExpired: it took longer; it is ended then.
    """
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        given = (function, tuple(arguments), dict(environment), str(cwd), outputs)
        process = context.Process(target=_call, args=given)
        _start(process)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutExpired([function.__name__], timeout)
        told, errors = (each.read_text() if each.exists() else "" for each in outputs)
        return CompletedProcess([function.__name__], process.exitcode, told, errors)


def _start(process: Any) -> None:
    """Start it; the one that forks, which may start with it, finds this checkout on its path."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    environment: Mapping[str, str],
    cwd: str,
    outputs: Sequence[Path],
) -> None:
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    try:
        function(*arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
