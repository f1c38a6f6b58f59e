"""How many tokens of a prompt go in at once."""

from __future__ import annotations

from typing import Literal

from mla_opt.cost_model import Prefill, choose_chunk
from mla_opt.errors import InputError
from mla_opt.graphs.interface.feeds import numpy_dtype
from mla_opt.runtimes.onnxruntime.decoder import Decoder

Chunk = Literal["auto"] | int

#: Bytes that one call may take beyond model and caches, if nothing else is said.
MEMORY_BUDGET = 1 << 30
#: Chunk of a model of whose attention nothing is known.
UNKNOWN_MODEL_CHUNK = 512


def next_chunk(
    decoder: Decoder, chunk: Chunk, batch: int, seen: int, remaining: int, budget: int
) -> int:
    """Return how many of ``remaining`` tokens to run next, after ``seen`` rows of cache.

    Raises:
        InputError: the model takes calls of another length only.
    """
    fixed = decoder.interface.limits().query_len
    if fixed is not None:
        return _fixed(decoder, fixed, remaining)
    if chunk != "auto":
        return min(int(chunk), remaining)
    if decoder.description.attention is None:
        return min(UNKNOWN_MODEL_CHUNK, remaining)
    return choose_chunk(_prefill(decoder), batch, seen, remaining, budget)


def check_chunk(chunk: Chunk, budget: int) -> None:
    """Raise `InputError` where either makes no sense."""
    if chunk != "auto" and (not isinstance(chunk, int) or chunk < 1):
        raise InputError(f"chunk must be 'auto' or a number of tokens from 1 on, not {chunk!r}")
    if budget < 1:
        raise InputError(f"memory_budget must be a positive number of bytes, not {budget}")


def _fixed(decoder: Decoder, fixed: int, remaining: int) -> int:
    if remaining % fixed:
        raise InputError(
            f"{decoder.label}: takes {fixed} tokens a call, which {remaining} tokens are no"
            " multiple of"
        )
    return fixed


def _prefill(decoder: Decoder) -> Prefill:
    attention = decoder.description.attention
    assert attention is not None
    return Prefill(
        geometry=attention.geometry,
        dtype_bytes=numpy_dtype(decoder.logits).itemsize,
        expands_from=attention.expands_from,
        fused=attention.fused,
        held=attention.held,
        logits_per_token=decoder.vocabulary or 0 if decoder.all_logits else 0,
    )
