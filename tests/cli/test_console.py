"""Progress: what it shows of events, and where it keeps quiet."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from mla_opt.cli import _console
from mla_opt.cli._console import Screen
from mla_opt.events import PassStarted, VerifyProgress
from tests.cli.fakes import EVENTS


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def progress(monkeypatch: pytest.MonkeyPatch) -> Progress:
    made = Progress(console=Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr(_console, "_progress", lambda: made)
    return made


def on_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a terminal in place; within the test, as pytest swaps streams between its phases."""
    monkeypatch.setattr(sys, "stderr", Terminal())


def test_events_move_the_bar(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    on_terminal(monkeypatch)
    with Screen().activity("reading") as activity:
        (task,) = progress.tasks
        assert (task.description, task.total) == ("reading", None)
        activity.observe(PassStarted("absorb_weights", 1, 4))
        assert (task.description, task.completed, task.total) == ("pass absorb_weights", 1, 4)
        activity.observe(VerifyProgress(2, 9, "decode"))
        assert (task.description, task.completed, task.total) == ("verify: decode", 2, 9)
        activity.step("writing")
        assert (task.description, task.completed, task.total) == ("writing", 0, None)
        assert progress.live.is_started
    assert not progress.live.is_started


def test_progress_stops_when_the_work_fails(
    progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_terminal(monkeypatch)
    started: list[bool] = []

    def fail() -> None:
        started.append(progress.live.is_started)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), Screen().activity("reading"):
        fail()
    assert started == [True]
    assert not progress.live.is_started


@pytest.mark.parametrize("screen", [Screen(quiet=True), Screen(verbose=True)])
def test_no_bar_when_quiet_or_verbose(
    progress: Progress, monkeypatch: pytest.MonkeyPatch, screen: Screen
) -> None:
    on_terminal(monkeypatch)
    with screen.activity("reading"):
        assert progress.tasks == []


def test_no_bar_without_a_terminal(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Screen().activity("reading") as activity:
        for event in EVENTS:
            activity.observe(event)
    assert progress.tasks == []
    assert sys.stderr.getvalue() == ""  # type: ignore[attr-defined]
