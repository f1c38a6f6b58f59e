"""`generate`: prompts in, tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from mla_opt.errors import InputError
from mla_opt.runtimes.generation import Choice, Stream, continue_sequences
from mla_opt.runtimes.onnxruntime.cache import LatentCache, open_decoder
from mla_opt.runtimes.onnxruntime.chunks import MEMORY_BUDGET, Chunk
from mla_opt.runtimes.onnxruntime.decoder import Decoder
from mla_opt.runtimes.onnxruntime.sessions import ModelLike
from mla_opt.runtimes.prompts import Ints, Tokens, as_rows
from mla_opt.runtimes.result import GenerationResult


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
) -> GenerationResult[LatentCache]:
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
    choice = Choice(max_new_tokens, stop_tokens, temperature, top_k, top_p, seed, stream)
    if cache is None:
        cache = LatentCache(decoder, len(as_rows(tokens, decoder.vocabulary)))
    used = cache

    def append(rows: tuple[Ints, ...]) -> npt.NDArray[Any]:
        return used.append(rows, chunk=chunk, memory_budget=memory_budget)

    return continue_sequences(used, tokens, choice, append)


def _decoder(model: ModelLike | ort.InferenceSession, cache: LatentCache | None) -> Decoder:
    if cache is None:
        return open_decoder(model)
    if model is not cache.decoder.session:
        raise InputError("the cache is of another session than the one given; give that one")
    return cache.decoder
