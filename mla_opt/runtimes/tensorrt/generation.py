"""`generate`: prompts in, tokens out, on engines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mla_opt.errors import InputError
from mla_opt.runtimes.generation import Choice, Stream, continue_sequences
from mla_opt.runtimes.prompts import Tokens, as_rows
from mla_opt.runtimes.result import GenerationResult
from mla_opt.runtimes.tensorrt.cache import EngineCache
from mla_opt.runtimes.tensorrt.loading import Engines


def generate(
    engines: Engines,
    tokens: Tokens,
    *,
    max_new_tokens: int,
    stop_tokens: int | Sequence[int] = (),
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | np.random.Generator | None = None,
    stream: Stream | None = None,
    cache: EngineCache | None = None,
) -> GenerationResult[EngineCache]:
    """Continue one sequence or a batch of them.

    The arguments are those of `mla_opt.runtimes.onnxruntime.generate`; prompts go in as long as the
    engines take them.

    Raises:
        InputError: an argument cannot be used, or the tokens do not fit.
        RunError: TensorRT failed.
    """
    choice = Choice(max_new_tokens, stop_tokens, temperature, top_k, top_p, seed, stream)
    if cache is None:
        cache = EngineCache(engines, len(as_rows(tokens, engines.decoder.vocabulary)))
    elif cache.engines is not engines:
        raise InputError("the cache is of other engines than those given; give those")
    return continue_sequences(cache, tokens, choice, cache.append)
