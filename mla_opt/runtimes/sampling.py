"""`Sampler`: from logits to tokens, greedy or random."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.verification.running import RunError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampler:
    """Chooses one token of each row of logits.

    Every row draws one number a step, whether it is finished or not, so that what a row says does
    not depend on when the others end.

    Attributes:
        temperature: what logits are divided by; 0 takes the largest.
        top_k: only that many of the most probable tokens can be drawn.
        top_p: only the fewest most probable tokens that together have this probability.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    generator: np.random.Generator = field(default_factory=np.random.default_rng)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, not {self.top_p}")

    def __call__(self, logits: Array) -> Ints:
        """Return ``[B]`` tokens of logits ``[B, V]``. Raises `RunError` where they are no numbers.

        Of several largest logits the first one counts.
        """
        best: Ints = logits.argmax(-1)
        if not np.isfinite(logits[np.arange(len(best)), best].astype(np.float32)).all():
            raise RunError("the model gave logits that are no finite numbers")
        if self.temperature == 0:
            return best
        drawn = self.generator.random(len(best))
        return np.array([self._draw(row, at) for row, at in zip(logits, drawn)], np.int64)

    def _draw(self, logits: Array, at: float) -> int:
        """The token at which the sum of probabilities, most probable first, passes ``at``."""
        candidates = self._most_probable(logits)
        scores = logits[candidates].astype(np.float64) / self.temperature
        order = np.argsort(-scores, kind="stable")
        kept = np.exp(scores[order] - scores[order[0]])
        total = np.cumsum(kept)
        if self.top_p is not None:
            last = int(np.searchsorted(total, self.top_p * total[-1]))
            total = total[: last + 1]
        place = min(int(np.searchsorted(total, at * total[-1], side="right")), len(total) - 1)
        return int(candidates[order[place]])

    def _most_probable(self, logits: Array) -> Ints:
        """Indices of the tokens to sort: a vocabulary is long, and few of it count."""
        if self.top_k is not None and self.top_k < logits.size:
            found: Ints = np.sort(np.argpartition(logits, -self.top_k)[-self.top_k :])
            return found
        if self.top_p is None or self.top_p == 1:
            return np.arange(logits.size)
        scores = logits.astype(np.float64) / self.temperature
        weights: Floats = np.exp(scores - scores.max())
        # All tokens less probable than that together are less probable than what top_p leaves out.
        return np.flatnonzero(weights >= weights.sum() * (1 - self.top_p) / logits.size)
