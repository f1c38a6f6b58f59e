"""What a person sees: tables on standard output, progress on standard error.

Colour and moving progress appear only on a terminal; into a file goes plain text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress, TaskID

    from mla_opt.events import Event

# Tables are made for this width; 80, which rich assumes of a file, folds too much.
_FILE_WIDTH = 120


class Screen:
    """Where one command writes.

    Args:
        quiet: print nothing but errors.
        verbose: print details, and progress as lines even where there is no terminal.
    """

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet
        self.verbose = verbose

    def show(self, renderables: Iterable[RenderableType]) -> None:
        """Print tables and lines on standard output, unless quiet."""
        if self.quiet:
            return
        console = _console(sys.stdout.isatty())
        for renderable in renderables:
            console.print(renderable, soft_wrap=isinstance(renderable, str))

    def say(self, line: str) -> None:
        """Print one line on standard output, unless quiet."""
        if not self.quiet:
            print(line)

    def detail(self, line: str) -> None:
        """Print one line on standard error if verbose."""
        if self.verbose and not self.quiet:
            print(line, file=sys.stderr)

    def activity(self, first: str, *, moving: bool = True) -> Activity:
        """Return progress to work under; ``moving`` false keeps it from the screen."""
        # Lines of --verbose and a moving bar on the same screen would overwrite each other.
        plain = self.quiet or self.verbose or not sys.stderr.isatty()
        return Activity(self, first, moving and not plain)


class Activity:
    """Progress of one command, cleared from the screen when it is done.

    Use as a context manager; call :meth:`step` when something begins, and hand :meth:`observe` to
    the API.
    """

    def __init__(self, screen: Screen, first: str, moving: bool) -> None:
        self._screen = screen
        self._first = first
        self._moving = moving
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Activity:
        if self._moving:
            self._progress = _progress()
            self._task = self._progress.add_task(self._first, total=None)
            self._progress.start()
        self._screen.detail(self._first)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, text: str, done: int = 0, total: int | None = None) -> None:
        """Say what is going on now; with ``total``, how much of it is done."""
        if self._progress is not None and self._task is not None:
            # update() takes a total of None for "as before".
            self._progress.tasks[0].total = total
            self._progress.update(self._task, description=text, completed=done)
        if done == 0:
            self._screen.detail(text)

    def observe(self, event: Event) -> None:
        """Show an event of the API."""
        from mla_opt.events import PassFinished, PassStarted, VerifyProgress

        if isinstance(event, PassStarted):
            self.step(f"pass {event.name}", event.index, event.total)
        elif isinstance(event, PassFinished):
            done = f"{event.result.matched} matched, {event.result.rewritten} rewritten"
            self._screen.detail(f"pass {event.name}: {done}, {event.seconds:.3f} s")
        elif isinstance(event, VerifyProgress):
            self.step(f"verify: {event.label}", event.done, event.total)


def _console(terminal: bool) -> Console:
    from rich.console import Console

    fixed = None if terminal or "COLUMNS" in os.environ else _FILE_WIDTH
    return Console(markup=False, highlight=False, width=fixed)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        # Tables go to standard output, which is another stream and must stay so.
        redirect_stdout=False,
        redirect_stderr=False,
    )
