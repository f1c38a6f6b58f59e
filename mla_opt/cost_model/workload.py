"""One call of an attention: batch, new tokens, keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """One call: ``batch`` sequences, ``query_len`` new tokens, ``total_len`` keys (past + new).

    Raises:
        ValueError: a number is not positive, or there are fewer keys than new tokens.
    """

    batch: int = 1
    query_len: int = 1
    total_len: int = 8192

    def __post_init__(self) -> None:
        if min(self.batch, self.query_len) < 1:
            raise ValueError(f"batch and query_len must be at least 1: {self}")
        if self.total_len < self.query_len:
            raise ValueError(f"total_len counts the new tokens too, so it is at least S: {self}")

    @property
    def tokens(self) -> int:
        """New tokens of all sequences, ``B S``."""
        return self.batch * self.query_len

    @property
    def keys(self) -> int:
        """Keys of all sequences, ``B T``."""
        return self.batch * self.total_len

    @property
    def scores(self) -> float:
        """Query-key pairs that a causal attention looks at, per head."""
        return self.tokens * (self.total_len - (self.query_len - 1) / 2)


DECODE = Workload()
