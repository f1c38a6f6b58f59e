"""Time several models against each other: A B C ... A B C, each in its own process."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
PAUSE = 0.05
#: A step that takes longer than this is warmed up once instead of twice.
LONG_MS = 500.0


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
    """

    name: str
    past: int
    new: int = 1
    rounds: int = 6
    turn_ms: float = 40.0
    only: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one variant took in one case."""

    samples_ms: tuple[float, ...]
    loaded_mb: float
    beyond_mb: float
    error: float | None

    @property
    def best(self) -> float:
        """The fastest step."""
        return min(self.samples_ms)

    @property
    def median(self) -> float:
        """The median step."""
        return statistics.median(self.samples_ms)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary."""
        return {
            "min_ms": self.best,
            "median_ms": self.median,
            "n": len(self.samples_ms),
            "loaded_mb": self.loaded_mb,
            "beyond_loaded_mb": self.beyond_mb,
            "logits_error": self.error,
        }


class Process:
    """A `worker` and the pipe to it."""

    def __init__(self, model: Path, threads: int = THREADS):
        command = [sys.executable, "-m", "tests.benchmarks.worker", str(model), str(threads)]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.model = model
        self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that the worker writes."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.model.name} ended, exit {self.process.wait()}")
        return dict(json.loads(line))

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One request and its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def step(self) -> float:
        """Milliseconds of one step."""
        return float(self.ask("step")["ms"])

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def turn(process: Process, turn_ms: float) -> list[float]:
    """Steps of one variant until `turn_ms` have gone."""
    samples = [process.step()]
    while sum(samples) + samples[-1] < turn_ms:
        samples.append(process.step())
    return samples


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


def warm_up(process: Process, case: Case) -> Start:
    """Set up, and discard the first steps."""
    setup = process.ask("setup", past=case.past, new=case.new, feed_back=case.new == 1)
    first = process.step()
    logits = np.array(process.ask("logits")["logits"])
    if first < LONG_MS:
        process.step()
    return Start(float(setup["loaded_mb"]), setup["states"], logits)


def measure(case: Case, models: Mapping[str, Path]) -> dict[str, Timing]:
    """Run one case; the first model is the reference that the others' logits are compared with."""
    chosen = {k: v for k, v in models.items() if not case.only or k in case.only}
    with ExitStack() as stack:
        workers = {k: stack.enter_context(Process(v)) for k, v in chosen.items()}
        warm = {k: warm_up(worker, case) for k, worker in workers.items()}
        samples: dict[str, list[float]] = {k: [] for k in workers}
        for _ in range(case.rounds):
            for name, worker in workers.items():
                time.sleep(PAUSE)
                samples[name] += turn(worker, case.turn_ms)
        peaks = {k: worker.ask("peak")["beyond_mb"] for k, worker in workers.items()}
    reference = next(iter(warm.values()))
    return {
        k: Timing(tuple(samples[k]), start.loaded_mb, peaks[k], start.error(reference))
        for k, start in warm.items()
    }
