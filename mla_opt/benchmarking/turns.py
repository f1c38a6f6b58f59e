"""Taking turns, A B C ... A B C, so that what else the machine does falls on all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

#: Seconds before each turn, in which the one before it comes to rest.
PAUSE = 0.05
#: A step that takes longer than this is warmed up once instead of twice.
LONG_MS = 500.0


class Steps(Protocol):
    """Something that can be timed step by step."""

    def step(self) -> float:
        """Do one step; returns its milliseconds."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What one variant took in one case.

    Attributes:
        samples_ms: every timed step.
        loaded_mb: resident memory once the model was loaded.
        beyond_mb: the most beyond that, caches included.
        error: largest difference of the outputs over the spread of the reference's; `None` where
            nothing was compared.
    """

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


def warm_up(steps: Steps, first_ms: float) -> None:
    """Discard one more step after a first that took `first_ms`, unless steps are long."""
    if first_ms < LONG_MS:
        steps.step()


def turn(steps: Steps, turn_ms: float) -> list[float]:
    """Steps of one variant until `turn_ms` have gone; at least one."""
    samples = [steps.step()]
    while sum(samples) + samples[-1] < turn_ms:
        samples.append(steps.step())
    return samples


def take_turns(
    workers: Mapping[str, Steps], rounds: int, turn_ms: float, seconds: float = float("inf")
) -> dict[str, list[float]]:
    """Let every worker have `rounds` turns; no further round begins after `seconds`.

    Returns:
        the milliseconds of every step, by worker.
    """
    samples: dict[str, list[float]] = {name: [] for name in workers}
    start = time.monotonic()
    for done in range(rounds):
        if done and time.monotonic() - start > seconds:
            break
        for name, worker in workers.items():
            time.sleep(PAUSE)
            samples[name] += turn(worker, turn_ms)
    return samples
