"""What a long run tells whoever is watching: one small frozen event per thing that happened.

The API calls an ``Observer`` with these; the command line turns them into progress and tables.
An observer must be quick and must not raise: the work waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class PassOutcome(Protocol):
    """What a pass reports of itself, as far as a watcher needs it."""

    @property
    def matched(self) -> int:
        """Number of places the pass looked at and recognised."""

    @property
    def rewritten(self) -> int:
        """Number of places the pass changed."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for a person."""


@dataclass(frozen=True, slots=True)
class PassStarted:
    """Pass ``name`` begins; it is number ``index`` (from 0) of ``total``."""

    name: str
    index: int
    total: int


@dataclass(frozen=True, slots=True)
class PassFinished:
    """Pass ``name`` is done after ``seconds``; ``graph_text()`` renders the graph it left.

    The text is made on demand: rendering a large graph takes longer than most passes.
    """

    name: str
    result: PassOutcome
    seconds: float
    graph_text: Callable[[], str]


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """``done`` of ``total`` verification runs are finished; ``label`` names the next one."""

    done: int
    total: int
    label: str


Event = PassStarted | PassFinished | VerifyProgress
Observer = Callable[[Event], None]
