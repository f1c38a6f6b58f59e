"""`generate`: prompts in, tokens out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mla_opt.errors import InputError
from mla_opt.graphs.interface_feeds import Bools
from mla_opt.runtimes.onnxruntime.cache import LatentCache, open_decoder
from mla_opt.runtimes.onnxruntime.chunks import MEMORY_BUDGET, Chunk
from mla_opt.runtimes.onnxruntime.decoder import Decoder
from mla_opt.runtimes.onnxruntime.prompts import Ints, Tokens, as_rows
from mla_opt.runtimes.onnxruntime.result import GenerationResult
from mla_opt.runtimes.onnxruntime.sampling import Sampler
from mla_opt.runtimes.onnxruntime.sessions import ModelLike

#: Is told the new token of each sequence, -1 for those that have ended.
Stream = Callable[[Ints], object]

ENDED = -1


def generate(
    model: ModelLike | ort.InferenceSession,
    tokens: Tokens,
    *,
    max_new_tokens: int,
    stop_tokens: int | Sequence[int] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | np.random.Generator | None = None,
    stream: Stream | None = None,
    chunk: Chunk = "auto",
    memory_budget: int = MEMORY_BUDGET,
    cache: LatentCache | None = None,
) -> GenerationResult:
    """Continue one sequence or a batch of them.

    Args:
        model: a session, or a model to open one of.
        tokens: ids of one sequence, or of several, which may differ in length.
        max_new_tokens: how many each sequence gets at most.
        stop_tokens: a sequence ends with the first of these.
        temperature: 0 takes the most probable token, above that tokens are drawn.
        top_k: only that many of the most probable tokens can be drawn.
        top_p: only the fewest most probable tokens that together have this probability.
        seed: for the draws; a NumPy generator goes on where it is.
        stream: called after every step with one token per sequence, ``[B]`` int64, -1 for
            sequences that have ended.
        chunk: tokens of the prompt that go in at once; ``auto`` takes the fastest chunk that the
            budget allows, so memory grows with the prompt's length and not with its square.
        memory_budget: bytes that one call may take beyond model and caches.
        cache: what an earlier call returned, to go on from there; it is changed.

    Raises:
        InputError: an argument or the model cannot be used: ids out of range, more tokens than the
            cache has room for, prompts of different lengths for a model without a mask.
        RunError: ONNX Runtime failed.
    """
    decoder = _decoder(model, cache)
    stops = _stop_tokens(stop_tokens, decoder)
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    sampler = Sampler(temperature, top_k, top_p, np.random.default_rng(seed))
    rows = as_rows(tokens, decoder.vocabulary)
    if cache is None:
        cache = LatentCache(decoder, len(rows))
    prompt = _prompt_lengths(rows, cache)
    start = time.perf_counter()
    # All at once, as every growth of the caches copies them.
    cache.reserve(cache.rows + max(prompt) + max_new_tokens - 1)
    logits = cache.append(rows, chunk=chunk, memory_budget=memory_budget)
    run = _Run(cache, sampler, stops, stream, max_new_tokens)
    run.take(logits)
    between = time.perf_counter()
    while run.goes_on:
        run.step()
    return run.result(prompt, between - start, time.perf_counter() - between)


def _decoder(model: ModelLike | ort.InferenceSession, cache: LatentCache | None) -> Decoder:
    if cache is None:
        return open_decoder(model)
    if model is not cache.decoder.session:
        raise InputError("the cache is of another session than the one given; give that one")
    return cache.decoder


def _stop_tokens(stop_tokens: int | Sequence[int], decoder: Decoder) -> Ints:
    found = np.atleast_1d(np.asarray(stop_tokens if np.size(stop_tokens) else [], np.int64))
    as_rows([found], decoder.vocabulary)
    return found


def _prompt_lengths(rows: tuple[Ints, ...], cache: LatentCache) -> tuple[int, ...]:
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
class _Run:
    """One generation under way.

    Sequences that have ended are fed padding: nobody attends to it, and it does not count.
    """

    cache: LatentCache
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
    ) -> GenerationResult:
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
