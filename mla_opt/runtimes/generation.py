"""Generation on a cache of any runtime: choose tokens, run them, stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import Bools
from mla_opt.runtimes.prompts import Ints, Tokens, as_rows
from mla_opt.runtimes.result import GenerationResult
from mla_opt.runtimes.sampling import Sampler

Array = npt.NDArray[Any]
#: Is told the new token of each sequence, -1 for those that have ended.
Stream = Callable[[Ints], object]

ENDED = -1


class Decoder(Protocol):
    """What generation asks of a model."""

    @property
    def vocabulary(self) -> int | None:
        """Number of token ids, if it is known."""

    @property
    def can_pad(self) -> bool:
        """Whether rows of one batch may differ in length."""


class TokenCache(Protocol):
    """What generation asks of a cache, and of the model behind it."""

    pending: tuple[Ints, ...]

    @property
    def decoder(self) -> Decoder:
        """The model."""

    @property
    def batch(self) -> int:
        """Number of sequences."""

    @property
    def rows(self) -> int:
        """Rows in use."""

    def reserve(self, rows: int) -> None:
        """Make room for as many rows in all."""

    def append(self, tokens: Tokens) -> Array:
        """Run new tokens of every sequence, the pending ones first; returns what `run` does."""

    def run(self, ids: Ints, valid: Bools) -> Array:
        """Run ids ``[B, S]`` in one call; returns logits of the last, ``[B, V]``."""

    def spoil(self, reason: str) -> None:
        """Let nothing be appended any more, and say why."""


CacheT = TypeVar("CacheT", bound=TokenCache)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen, and when a sequence ends.

    Attributes:
        max_new_tokens: how many a sequence gets at most.
        stop_tokens: a sequence ends with the first of these.
        temperature: 0 takes the most probable token, above that tokens are drawn.
        top_k: only that many of the most probable tokens can be drawn.
        top_p: only the fewest most probable tokens that together have this probability.
        seed: for the draws; a NumPy generator goes on where it is.
    """

    max_new_tokens: int
    stop_tokens: int | Sequence[int] = ()
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | np.random.Generator | None = None

    def sampler(self) -> Sampler:
        """What draws the tokens. Raises `InputError` for an argument without a meaning."""
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        generator = np.random.default_rng(self.seed)
        return Sampler(self.temperature, self.top_k, self.top_p, generator)

    def stops(self, vocabulary: int | None) -> Ints:
        """The tokens that end a sequence. Raises `InputError` for one out of range."""
        given = self.stop_tokens if np.size(self.stop_tokens) else []
        found = np.atleast_1d(np.asarray(given, np.int64))
        as_rows([found], vocabulary)
        return found


@dataclass(frozen=True, slots=True)
class Choice(Sampling):
    """The arguments that every `generate` has."""

    stream: Stream | None = None


def continue_sequences(
    cache: CacheT,
    tokens: Tokens,
    choice: Choice,
    append: Callable[[tuple[Ints, ...]], Array],
) -> GenerationResult[CacheT]:
    """Run a prompt by ``append``, then token by token.

    Raises:
        InputError: an argument cannot be used.
        RunError: the runtime failed.
    """
    vocabulary = cache.decoder.vocabulary
    stops, sampler = choice.stops(vocabulary), choice.sampler()
    rows = as_rows(tokens, vocabulary)
    prompt = _prompt_lengths(rows, cache)
    start = time.perf_counter()
    # All at once, as every growth of the caches copies them.
    cache.reserve(cache.rows + max(prompt) + choice.max_new_tokens - 1)
    logits = append(rows)
    run = _Run(cache, sampler, stops, choice.stream, choice.max_new_tokens)
    run.take(logits)
    between = time.perf_counter()
    while run.goes_on:
        run.step()
    return run.result(prompt, between - start, time.perf_counter() - between)


def _prompt_lengths(rows: tuple[Ints, ...], cache: TokenCache) -> tuple[int, ...]:
    if len(rows) != cache.batch:
        raise InputError(
            f"the cache holds {cache.batch} sequences, but tokens of {len(rows)} are given"
        )
    lengths = tuple(row.size + old.size for row, old in zip(rows, cache.pending))
    if not min(lengths):
        raise InputError(
            f"sequence {lengths.index(0)} has no token to begin with; give at least one"
        )
    return lengths


@dataclass(slots=True)
class _Run(Generic[CacheT]):
    """One generation under way.

    Sequences that have ended are fed padding: nobody attends to it, and it does not count.
    """

    cache: CacheT
    sampler: Sampler
    stops: Ints
    stream: Stream | None
    limit: int
    live: Bools = field(init=False)
    steps: list[Ints] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.live = np.ones(self.cache.batch, np.bool_)

    @property
    def goes_on(self) -> bool:
        """Whether any sequence needs another token."""
        return bool(self.live.any()) and len(self.steps) < self.limit

    def step(self) -> None:
        """Run the tokens that were chosen last, and choose the next."""
        last = np.maximum(self.steps[-1], 0)[:, None]
        valid = self.live[:, None] if self.cache.decoder.can_pad else np.True_
        self.take(self.cache.run(last, np.broadcast_to(valid, last.shape)))

    def take(self, logits: npt.NDArray[Any]) -> None:
        """Choose a token for each sequence that has not ended."""
        chosen = np.where(self.live, self.sampler(logits), ENDED)
        self.steps.append(chosen)
        if self.stops.size:
            self.live = self.live & ~np.isin(chosen, self.stops)
        if self.stream is not None:
            self.stream(chosen.copy())

    def result(
        self, prompt: tuple[int, ...], prefill_seconds: float, decode_seconds: float
    ) -> GenerationResult[CacheT]:
        """Gather what was said, and note what the cache has yet to run."""
        table = np.stack(self.steps, axis=1)
        rows = tuple(row[row != ENDED] for row in table)
        if len({row.size for row in rows}) > 1 and not self.cache.decoder.can_pad:
            self.cache.spoil(
                "sequences ended at different steps, and without a mask what came after cannot be"
                " told from them; start again"
            )
        self.cache.pending = tuple(row[-1:] for row in rows)
        return GenerationResult(
            tokens=rows,
            finish_reasons=tuple("length" if live else "stop" for live in self.live),
            cache=self.cache,
            prompt_tokens=prompt,
            prefill_seconds=prefill_seconds,
            decode_seconds=decode_seconds,
        )
