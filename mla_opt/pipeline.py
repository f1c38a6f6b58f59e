"""Passes, and running them one after the other.

A pass is a frozen dataclass with a ``name``, its options as fields, and ``run(graph)``. What it
needs of the graph it checks first (``requires``), what it promises it checks last (``ensures``);
the pipeline times it and turns a failure into an error that says which pass failed after which.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from mla_opt.errors import MlaOptError, PassError, Refusal, one_line
from mla_opt.graphs.protocol import Graph


@dataclass(frozen=True, slots=True)
class PassResult:
    """What one pass did: sites it looked at, sites it changed, what it refused, what to tell.

    ``notes`` are for those who ask for details, ``warnings`` for everybody.
    """

    matched: int = 0
    rewritten: int = 0
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Pass(ABC):
    """One step of the compiler."""

    name: ClassVar[str]

    @abstractmethod
    def run(self, graph: Graph) -> PassResult:
        """Do the step, in place."""

    def requires(self, graph: Graph) -> None:
        """Check what the step needs. Raises `PassError`."""
        del graph

    def ensures(self, graph: Graph) -> None:
        """Check what the step promises. Raises `PassError`."""
        del graph


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass that ran: its result and how long it took."""

    name: str
    result: PassResult
    seconds: float


Observer = Callable[[int, int, "Pass", "PassRecord | None", Graph], None]
"""Called before a pass (record is None) and after it, with its place and the number of passes."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in order."""

    passes: Sequence[Pass]

    def run(self, graph: Graph, observer: Observer | None = None) -> tuple[PassRecord, ...]:
        """Run every pass on ``graph``.

        Raises:
            PassError: a pass failed; the message names it and the passes before it.
        """
        records: list[PassRecord] = []
        for place, step in enumerate(self.passes):
            if observer is not None:
                observer(place, len(self.passes), step, None, graph)
            record = _run_one(step, graph, [each.name for each in records])
            records.append(record)
            if observer is not None:
                observer(place, len(self.passes), step, record, graph)
        return tuple(records)


def _run_one(step: Pass, graph: Graph, before: list[str]) -> PassRecord:
    start = time.perf_counter()
    try:
        step.requires(graph)
        result = step.run(graph)
        step.ensures(graph)
    except MlaOptError as error:
        after = f" after {', '.join(before)}" if before else ""
        raise type(error)(f"pass {step.name}{after}: {error}") from error
    except MemoryError:
        raise  # says nothing of the pass, nor of the model
    except Exception as error:
        after = f" after {', '.join(before)}" if before else ""
        raise PassError(f"pass {step.name}{after} failed: {one_line(error)}") from error
    return PassRecord(step.name, result, time.perf_counter() - start)
