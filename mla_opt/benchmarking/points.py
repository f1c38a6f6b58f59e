"""What is timed: how many sequences, how much in the cache, how many new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mla_opt.cost_model import Workload
from mla_opt.errors import InputError
from mla_opt.option_text import parse_count
from mla_opt.verification.scenarios import Scenario

#: Steps are repeated until the cache has grown by this share of the context, then from there again.
GROWTH = 1 / 16
#: ... but at least this many.
FEWEST_STEPS = 32


@dataclass(frozen=True, slots=True)
class Point:
    """One kind of step.

    Attributes:
        context: P, tokens in the cache before the first step.
        batch: B.
        query: S, new tokens of each step.
    """

    context: int
    batch: int
    query: int

    @property
    def fed_back(self) -> bool:
        """Whether the cache of one step goes into the next: yes for single tokens.

        Longer queries are repeated on the same past, or they would soon be about another one.
        """
        return self.query == 1

    @property
    def growth(self) -> int:
        """Steps until the cache starts again from ``context`` tokens."""
        return max(FEWEST_STEPS, int(self.context * GROWTH)) if self.fed_back else 1

    @property
    def workload(self) -> Workload:
        """The first step, as the cost model takes it."""
        return Workload(self.batch, self.query, self.context + self.query)

    def scenario(self, steps: int) -> Scenario:
        """``steps`` steps as a scenario; no sequence is padded."""
        calls, padding = (self.query,) * steps, (0,) * self.batch
        return Scenario(str(self), self.batch, calls, padding, self.context)

    def __str__(self) -> str:
        tokens = "token" if self.query == 1 else "tokens"
        return f"batch {self.batch}, {self.query} {tokens} on {self.context}"


def grid(
    contexts: Sequence[int], batches: Sequence[int], queries: Sequence[int]
) -> tuple[Point, ...]:
    """Every combination, the longest context of each batch and query last."""
    return tuple(Point(c, b, q) for b in batches for q in queries for c in sorted(contexts))


def parse_sizes(text: str, least: int) -> tuple[int, ...]:
    """Read whole numbers separated by commas; ``k`` stands for 1024, ``m`` for 1024 k.

    Raises:
        InputError: one is no number, smaller than ``least``, or there twice.
    """
    sizes = tuple(parse_count(word.strip(), least) for word in text.split(","))
    if len(set(sizes)) != len(sizes):
        raise InputError(f"{text!r} names one number twice")
    return sizes
