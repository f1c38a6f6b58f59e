"""Time several models against each other: A B C ... A B C, each in its own process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mla_opt.benchmarking import turns
from mla_opt.benchmarking.process import WorkerProcess
from mla_opt.benchmarking.turns import Timing

THREADS = 2


@dataclasses.dataclass(frozen=True)
class Case:
    """What every variant does: `new` tokens after `past`, again and again.

    Attributes:
        name: What tables and JSON call it.
        past: Rows in the cache before the first step.
        new: Tokens per step.
        rounds: How often the variants take turns.
        turn_ms: A turn repeats its step until this much time has gone: quick variants get more.
        only: Names of the variants that take part; all when empty.
        kernel: Names of those that run with the kernel library.
    """

    name: str
    past: int
    new: int = 1
    rounds: int = 6
    turn_ms: float = 40.0
    only: tuple[str, ...] = ()
    kernel: tuple[str, ...] = ()


def process(name: str, model: Path, kernel: bool) -> WorkerProcess:
    """A `worker` of one model."""
    arguments = [str(model), str(THREADS), *(["kernel"] if kernel else [])]
    return WorkerProcess(name, "tests.benchmarks.worker", arguments, Path(__file__).parents[2])


@dataclasses.dataclass(frozen=True)
class Start:
    """What one variant says before it is timed."""

    loaded_mb: float
    states: dict[str, list[int]]
    logits: np.ndarray[Any, Any]

    def error(self, reference: Start) -> float | None:
        """Largest difference of the logits over the spread of the reference's.

        None when the cache is another one: its random rows then stand for another past.
        """
        if self.states != reference.states:
            return None
        return float(abs(self.logits - reference.logits).max() / reference.logits.std())


def warm_up(process: WorkerProcess, case: Case) -> Start:
    """Set up, and discard the first steps."""
    setup = process.ask("setup", past=case.past, new=case.new, feed_back=case.new == 1)
    first = process.step()
    logits = np.array(process.ask("logits")["logits"])
    turns.warm_up(process, first)
    return Start(float(setup["loaded_mb"]), setup["states"], logits)


def measure(case: Case, models: Mapping[str, Path]) -> dict[str, Timing]:
    """Run one case; the first model is the reference that the others' logits are compared with."""
    chosen = {k: v for k, v in models.items() if not case.only or k in case.only}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(process(name, model, name in case.kernel))
            for name, model in chosen.items()
        }
        warm = {k: warm_up(worker, case) for k, worker in workers.items()}
        samples = turns.take_turns(workers, case.rounds, case.turn_ms)
        peaks = {k: worker.ask("peak")["beyond_mb"] for k, worker in workers.items()}
    reference = next(iter(warm.values()))
    return {
        k: Timing(tuple(samples[k]), start.loaded_mb, peaks[k], start.error(reference))
        for k, start in warm.items()
    }
