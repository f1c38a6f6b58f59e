"""The end of a run that would not end: a peer compiles for ever, or a kernel hangs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType


class Deadline:
    """Calls ``report`` and leaves the process with 1 when ``seconds`` are over.

    By a thread: calls into the driver and compilers that are waited for let it run.
    """

    def __init__(
        self,
        seconds: float,
        report: Callable[[], None],
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._report, self._leave = report, leave
        self._timer = threading.Timer(max(seconds, 0.0), self._over)
        self._timer.daemon = True

    def _over(self) -> None:
        try:
            self._report()
        finally:
            self._leave(1)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
