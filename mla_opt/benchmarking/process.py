"""A process that does what it is asked over a pipe: one JSON object a line, each way."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mla_opt.errors import MlaOptError

#: Characters of a worker's last words that are shown.
LONGEST = 300


class WorkerError(MlaOptError):
    """A worker could not do what it was asked. ``kind`` names the exception that it met."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class WorkerDiedError(WorkerError):
    """A worker ended without an answer. ``code`` is its exit status; below 0, minus the signal."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class WorkerProcess:
    """A Python module that runs `mla_opt.benchmarking.serving.serve`, and the pipe to it.

    Args:
        label: how messages call it.
        module: what to run, with the interpreter that runs this.
        arguments: its command line.
        folder: where to run it; where this process runs if not given.

    Raises:
        WorkerError: it could not be made ready.
    """

    def __init__(
        self, label: str, module: str, arguments: Sequence[str], folder: Path | None = None
    ) -> None:
        self.label = label
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have method `do` called and return what it answers.

        Raises:
            WorkerError: it raised an exception, or the process ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        return self._answer()

    def step(self) -> float:
        """Milliseconds of one step."""
        return float(self.ask("step")["ms"])

    def close(self) -> None:
        """End the process; it ends by itself when there is nobody to ask it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        answer = dict(json.loads(line))
        if "error" in answer:
            raise WorkerError(f"{self.label}: {answer['error']}", answer["kind"])
        return answer

    def _died(self) -> WorkerDiedError:
        code = self._process.wait()
        self._said.seek(0)
        words = [line for line in self._said.read().splitlines() if line.strip()]
        last = f": {words[-1][:LONGEST]}" if words else ""
        return WorkerDiedError(
            f"the process of {self.label} ended with exit status {code}{last}", code
        )
