"""Counts of a stage as linear forms of a call.

Every count of the model is ``fixed + per_token B S + per_key B T + per_score n``, where n is the
number of query-key pairs that a causal attention looks at. Whoever has the four numbers has the
count at every batch, query length and context.
"""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.cost_model.workload import Workload


@dataclass(frozen=True, slots=True)
class Terms:
    """A count of operations, numbers or bytes as a linear form of a call."""

    fixed: float = 0
    per_token: float = 0
    per_key: float = 0
    per_score: float = 0

    def at(self, workload: Workload) -> float:
        """Return the count at one call; a whole number where no scores are counted."""
        parts = (
            (self.fixed, 1),
            (self.per_token, workload.tokens),
            (self.per_key, workload.keys),
            (self.per_score, workload.scores),
        )
        # What counts no scores stays whole: there is half a score in a call, but no half byte.
        return sum(factor * size for factor, size in parts if factor)

    def __add__(self, other: Terms) -> Terms:
        return Terms(
            self.fixed + other.fixed,
            self.per_token + other.per_token,
            self.per_key + other.per_key,
            self.per_score + other.per_score,
        )

    def times(self, factor: float) -> Terms:
        """Return ``factor`` times the count."""
        return Terms(
            factor * self.fixed,
            factor * self.per_token,
            factor * self.per_key,
            factor * self.per_score,
        )
