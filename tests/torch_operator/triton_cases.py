"""The Triton kernels in Triton's interpreter, on the CPU: a program, since Triton looks at
TRITON_INTERPRET once, when it is imported. Prints what went wrong with each case, as JSON.

bfloat16 is left out: the interpreter multiplies it wrongly.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch

from mla_opt.operator import Signature
from mla_opt.operator.torch import triton_launch as launch
from mla_opt.operator.torch.call import make_call
from tests.operator.cases import (
    ALL_SIGNATURES,
    NARROW_SIGNATURES,
    REDUCED_SIGNATURES,
    SCALE,
    name,
    operands,
)
from tests.torch_operator.calls import assert_matches, attributes, positional

RAGGED = Signature(has_cache=True, in_place=True, causal=True)


def attend(signature: Signature, feeds: dict, rank: int = 6, processors: int = 1, **limits) -> None:
    call = make_call(*positional(feeds), **attributes(signature, rank))
    assert launch.takes(call)
    outputs = launch.attend(call, processors)
    assert_matches(outputs, signature, feeds, rank=rank, **limits)


def every_signature() -> Iterator[tuple[str, Callable[[], None]]]:
    for signature in ALL_SIGNATURES + NARROW_SIGNATURES:
        feeds = operands(signature, query_len=3)
        yield f"float32-{name(signature)}", lambda s=signature, f=feeds: attend(s, f)
    for signature in REDUCED_SIGNATURES:
        feeds = operands(signature, query_len=3, dtype=np.float16)
        yield f"float16-{name(signature)}", lambda s=signature, f=feeds: attend(s, f)


def several_splits() -> Iterator[tuple[str, Callable[[], None]]]:
    """Parts without keys among them: sequences of 0, 265 and 530 rows, and blind rows."""
    for signature in REDUCED_SIGNATURES:
        for dtype in (np.float32, np.float16):
            feeds = operands(signature, query_len=2, past=530, dtype=dtype)
            yield (
                f"splits-{dtype.__name__}-{name(signature)}",
                lambda s=signature, f=feeds: attend(s, f, processors=8),
            )


def in_place(signature: Signature) -> None:
    feeds = operands(signature, query_len=3)
    given = positional(feeds)
    call = make_call(*given, **attributes(signature))
    output = launch.attend_in_place(call, 1)
    rope_cache = torch.empty(0) if given[6] is None else given[6]
    assert_matches((output, given[2], rope_cache), signature, feeds)


def released_widths(rank: int, rope: int, dtype: type) -> None:
    """Rows of 40 heads, which is no multiple of a tile, scaled like a model's."""
    random = np.random.default_rng(0)

    def rows(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / 4).astype(dtype)

    feeds = {
        "query": rows(2, 40, 1, rank + rope),
        "latent": rows(2, 1, 1, rank + rope),
        "cache": rows(2, 1, 70, rank + rope),
        "past_len": np.array([3, 69], np.int32),
    }
    attend(RAGGED, feeds, rank, tolerance=2e-3 if dtype == np.float16 else 1e-5)


def hostile_lengths() -> None:
    """Nothing outside the buffer is touched, and no row is written that has no place."""
    buffer = torch.zeros(4, 1, 8, 10)
    cache = buffer[1:3]
    past_len = torch.tensor([-3, 2**31 - 1], dtype=torch.int32)
    call = make_call(
        torch.ones(2, 2, 2, 10),
        torch.ones(2, 1, 2, 10),
        cache,
        past_len,
        scale=SCALE,
        kv_lora_rank=6,
    )
    output = launch.attend_in_place(call, 1)
    assert torch.isfinite(output).all()
    assert (buffer == 0).all()


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    yield from every_signature()
    yield from several_splits()
    for signature in (RAGGED, Signature(has_cache=True, in_place=True, split=True)):
        yield f"in_place-{name(signature)}", lambda s=signature: in_place(s)
    for rank, rope in ((512, 64), (256, 32), (512, 0)):
        for dtype in (np.float32, np.float16):
            yield (
                f"widths-{rank}-{rope}-{dtype.__name__}",
                lambda k=rank, r=rope, d=dtype: released_widths(k, r, d),
            )
    yield "hostile_lengths", hostile_lengths


def outcome(run: Callable[[], None]) -> str:
    try:
        run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:600] or "failed"
    return ""


if __name__ == "__main__":
    json.dump({key: outcome(run) for key, run in cases()}, sys.stdout)
