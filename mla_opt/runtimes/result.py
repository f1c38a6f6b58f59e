"""`GenerationResult`: what was generated, why it ended, and the cache to go on with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
FinishReason = Literal["stop", "length"]
CacheT = TypeVar("CacheT")


@dataclass(frozen=True, slots=True)
class GenerationResult(Generic[CacheT]):
    """One batch of generated sequences.

    Attributes:
        tokens: new tokens of each sequence, ``[N_b]`` int64, its stop token included.
        finish_reasons: ``stop`` where a stop token came, ``length`` where ``max_new_tokens`` did.
        cache: every token but the last of each sequence, which it runs first when it goes on.
        prompt_tokens: tokens of each sequence that were run before the first new one.
        prefill_seconds: time to the first new token.
        decode_seconds: time of all later ones.
    """

    tokens: tuple[Ints, ...]
    finish_reasons: tuple[FinishReason, ...]
    cache: CacheT
    prompt_tokens: tuple[int, ...]
    prefill_seconds: float
    decode_seconds: float

    @property
    def steps(self) -> int:
        """Calls of the model after the prompt."""
        return max(row.size for row in self.tokens) - 1
