"""What is known of one sequence of a batch, and what a step tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mla_opt.errors import InputError
from mla_opt.runtimes.prompts import Ints
from mla_opt.runtimes.sampling import Sampler


class BatchFullError(InputError):
    """There is no place for another sequence now; there is one when another has ended."""


@dataclass(frozen=True, slots=True)
class BatchToken:
    """One new token of one sequence.

    Attributes:
        sequence: what `ContinuousBatch.add` returned.
        token: its id; -1 where ``finish_reason`` is ``error``.
        finish_reason: ``stop`` for a stop token, ``length`` for the last that was asked for,
            ``error`` where the sequence cannot go on; its place is free then. ``None``: more come.
        error: what went wrong.
    """

    sequence: int
    token: int
    finish_reason: Literal["stop", "length", "error"] | None = None
    error: str = ""


@dataclass(slots=True, eq=False)
class Sequence:
    """One sequence under way.

    Attributes:
        number: by which the caller knows it.
        prompt: all its first tokens.
        limit: how many new tokens it gets at most.
        stops: tokens that end it.
        sampler: with a generator of its own, so that others do not change what is drawn.
        length: rows that it has in its slot.
        said: how many new tokens it has.
        last: the newest token, which was not run yet.
    """

    number: int
    prompt: Ints
    limit: int
    stops: frozenset[int]
    sampler: Sampler
    length: int = 0
    said: int = 0
    last: int = -1

    @property
    def left(self) -> int:
        """Tokens of the prompt that were not run yet."""
        return max(self.prompt.size - self.length, 0)

    def take(self, token: int) -> BatchToken:
        """Note a new token; returns what is told of it."""
        self.said, self.last = self.said + 1, token
        if token in self.stops:
            return BatchToken(self.number, token, "stop")
        return BatchToken(self.number, token, "length" if self.said == self.limit else None)
