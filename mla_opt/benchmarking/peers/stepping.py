"""What all peers' processes have in common: where they are, and what memory that took."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.benchmarking.memory import memory, reset_peak
from mla_opt.benchmarking.points import Point

Ids = Sequence[Sequence[int]]

#: The token that is fed while time is measured; any is as good.
TOKEN = 3


class SteppingWorker(ABC):
    """A model with a cache. A subclass loads it and then calls this class's ``__init__``."""

    def __init__(self) -> None:
        self.loaded_mb = memory("VmRSS")
        self.point = Point(0, 1, 1)
        self.peak_mb = 0.0
        self.done = 0

    @abstractmethod
    def fill(self) -> None:
        """Make the cache hold ``point.context`` made-up rows of ``point.batch`` sequences."""

    @abstractmethod
    def restore(self) -> None:
        """Make the cache hold what `fill` put there, and no more."""

    def rewind(self) -> None:
        """The same after single tokens were fed back; from nothing, where that is as good."""
        self.fill()

    @abstractmethod
    def prepare(self, start: int) -> Any:
        """Make what a step of ``point.query`` tokens from position ``start`` on is fed."""

    @abstractmethod
    def run(self, prepared: Any) -> None:
        """Do that step; the cache grows."""

    @abstractmethod
    def logits(self, ids: Ids) -> npt.NDArray[Any]:
        """Logits ``[B, vocabulary]`` of the last of ``ids``, from an empty cache on."""

    def setup(self, context: int, batch: int, query: int) -> dict[str, Any]:
        """Fill the cache with `context` rows for steps of `query` tokens."""
        self.point = Point(context, batch, query)
        self.peak_mb = 0.0
        self.fill()
        self.done = 0
        reset_peak()
        return {"loaded_mb": self.loaded_mb}

    def step(self) -> dict[str, float]:
        """Run once; single tokens are fed on what the one before left."""
        if self.done and not self.point.fed_back:
            self.restore()
        elif self.done == self.point.growth:
            self.peak_mb = max(self.peak_mb, memory("VmHWM"))
            self.rewind()
            self.done = 0
            reset_peak()
        ahead = self.done * self.point.query if self.point.fed_back else 0
        prepared = self.prepare(self.point.context + ahead)
        start = time.perf_counter()
        self.run(prepared)
        spent = (time.perf_counter() - start) * 1e3
        self.done += 1
        return {"ms": spent}

    def prompt(self, ids: Ids, path: str) -> dict[str, Any]:
        """Write the logits of a prompt."""
        np.save(path, self.logits(ids))
        return {}

    def peak(self) -> dict[str, float]:
        """Most memory since `setup`, beyond the loaded model."""
        return {"beyond_mb": max(self.peak_mb, memory("VmHWM")) - self.loaded_mb}
