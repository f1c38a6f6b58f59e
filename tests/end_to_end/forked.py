"""Commands that start from one process in which everything is imported: a start is a fork.

    python -m tests.end_to_end.forked

reads a line of JSON for each command from standard input, forks, and answers with two lines: the
number of the process, and when it has ended, its status as `os.waitpid` gives it. Importing is half
of what a command on a small model takes, and a hundred tests call one.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

#: What commands import while they run, beside passes.
IMPORTED = (
    "mla_opt.api",
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


class Server:
    """The process that forks."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.end_to_end.forked"],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._folder = TemporaryDirectory()
        atexit.register(self.close)

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        cwd: Path | None,
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``mla-opt`` with `arguments`, and wait for it.

        Raises:
            subprocess.TimeoutExpired: it took longer; it is ended then.
        """
        outputs = [str(Path(self._folder.name) / name) for name in ("stdout", "stderr")]
        folder = str(cwd or Path.cwd())
        request = [list(arguments), dict(environment), folder, *outputs]
        number = int(self._ask(json.dumps(request)))
        timer = threading.Timer(timeout, os.kill, (number, signal.SIGKILL))
        timer.start()
        status = os.waitstatus_to_exitcode(int(self._answer()))
        expired = not timer.is_alive()
        timer.cancel()
        if expired:
            raise subprocess.TimeoutExpired(list(arguments), timeout)
        told, errors = (Path(each).read_text() for each in outputs)
        return subprocess.CompletedProcess(list(arguments), status, told, errors)

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process that forks is gone"
        return line

    def close(self) -> None:
        """End it: it reads until the end of its input."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


@functools.cache
def server(python_path: str) -> Server:
    """The one of this process."""
    return Server({**os.environ, "PYTHONPATH": python_path})


def serve() -> list[str] | None:
    """Fork for every line; in a fork, what it is to be called with. None when there are no more."""
    for line in sys.stdin:
        arguments, environment, folder, *outputs = json.loads(line)
        number = os.fork()
        if number == 0:
            become(environment, folder, outputs)
            return list(arguments)
        print(number, flush=True)
        print(os.waitpid(number, 0)[1], flush=True)
    return None


def become(environment: Mapping[str, str], folder: str, outputs: Sequence[str]) -> None:
    """Be as a process is that was started so."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


def call() -> int:
    """The command; what it exits with."""
    from mla_opt.cli import main

    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status: int) -> None:
    """End, but for the destructors of ONNX Runtime: they wait for a thread that forks have not."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    import importlib

    from mla_opt import passes

    for name in IMPORTED:
        importlib.import_module(name)
    for name in passes.BUILT_IN:
        passes.load(name)
    wanted = serve()
    if wanted is not None:
        sys.argv = ["-c", *wanted]
        leave(call())
