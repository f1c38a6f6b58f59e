"""Other kernels at the same sizes, those that are there: packages, and torch, are carried along.

Nothing is installed. FlashInfer compiles its kernel at first use, which takes a minute and nvcc.
Every peer is given the same caches, as many as ours are timed on, and what it gives is compared
with what torch computes in float32: a call that is fast and wrong is no peer.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.gpu.decode import RANK, ROPE, WIDTH, Point, Timing

PAGE = 64
SCALE = 192**-0.5
# Of the largest number expected: all peers round weights and outputs to bfloat16.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Operands:
    """Query [B, 1, H, C+R], caches of [B T/64, 64, 1, C+R], pages [B, T/64], lengths [B] = T."""

    point: Point
    query: Any
    caches: list[Any]
    table: Any
    lengths: Any
    processors: int | None = None  # to plan for, where there is no device to ask


# Computes on one of the caches; the output, or a tuple that begins with it, is B·H rows of C.
Step = Callable[[Any], Any]
Prepare = Callable[[Operands], Step]


def available() -> tuple[dict[str, Prepare], dict[str, str]]:
    """The peers that are there, by name, and why each of the others is not."""
    found: dict[str, Prepare] = {}
    absent: dict[str, str] = {}
    for name, (needs, prepare) in PEERS.items():
        reason = next((why for why in map(_missing, ("torch", *needs)) if why), "")
        if reason:
            absent[name] = reason
        else:
            found[name] = prepare
    return found, absent


def _missing(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever a package raises that was built for another machine
        return " ".join(f"{type(error).__name__}: {error}".split())[:120]
    return ""


def operands(point: Point, copies: int, device: str = "cuda") -> Operands:
    import torch

    options = {"device": device, "dtype": torch.bfloat16}
    pages = -(-point.keys // PAGE)
    query = torch.randn(point.batch, 1, point.heads, WIDTH, **options)
    caches = [torch.randn(point.batch * pages, PAGE, 1, WIDTH, **options) for _ in range(copies)]
    table = torch.arange(point.batch * pages, device=device, dtype=torch.int32)
    lengths = torch.full((point.batch,), point.keys, device=device, dtype=torch.int32)
    return Operands(point, query, caches, table.view(point.batch, pages), lengths)


def time_step(prepare: Prepare, point: Point, copies: int, turns: int) -> Timing:
    """Seconds of one step of a peer, captured in a graph as ours is.

    Raises:
        AssertionError: it computes something else.
    """
    import torch

    given = operands(point, copies)
    try:
        return _timed(prepare(given), given, turns)
    finally:
        del given
        torch.cuda.empty_cache()


def _timed(step: Step, given: Operands, turns: int) -> Timing:
    import torch

    stream = torch.cuda.Stream()
    # Operands and plans are made on the other stream, which this one would not wait for.
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        check(step, given)
        step(given.caches[-1])
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for cache in given.caches:
                step(cache)
        graph.replay()
        stream.synchronize()
        each = [_elapsed(graph.replay) / len(given.caches) for _ in range(turns)]
    return Timing(min(each), statistics.median(each))


def check(step: Step, given: Operands) -> None:
    """Compare the first sequence of one step."""
    output = step(given.caches[0])
    first = output[0] if isinstance(output, tuple) else output
    got = first.reshape(given.point.batch, given.point.heads, RANK)[0].float()
    pages = given.table[0].long()
    rows = given.caches[0][pages].reshape(-1, WIDTH)[: given.point.keys].float()
    weights = (SCALE * given.query[0, 0].float() @ rows.T).softmax(-1)
    wanted = weights @ rows[:, :RANK]
    worst = float((got - wanted).abs().max() / wanted.abs().max())
    assert worst <= TOLERANCE, f"computes something else: off by {worst:.0%} of the largest number"


def _elapsed(work: Callable[[], object]) -> float:
    import torch

    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000


def _flash_mla(given: Operands) -> Step:
    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    plan, _ = get_mla_metadata()
    options = {"softmax_scale": SCALE, "causal": True, "use_legacy": True}
    return lambda cache: flash_mla_with_kvcache(
        given.query, cache, given.table, given.lengths, RANK, plan, **options
    )


def _flashinfer(given: Operands) -> Step:
    import torch
    from flashinfer.mla import BatchMLAPagedAttentionWrapper

    point, table, device = given.point, given.table, given.query.device
    starts = torch.arange(point.batch + 1, device=device, dtype=torch.int32)
    pages = starts * table.shape[1]
    wrapper = BatchMLAPagedAttentionWrapper(
        torch.empty(128 << 20, device=device, dtype=torch.int8),
        use_cuda_graph=True,
        qo_indptr=starts.clone(),
        kv_indptr=pages.clone(),
        kv_indices=table.reshape(-1).clone(),
        kv_len_arr=given.lengths.clone(),
    )
    sizes = (point.heads, RANK, ROPE, PAGE)
    types = (torch.bfloat16, torch.bfloat16)
    wrapper.plan(starts, pages, table.reshape(-1), given.lengths, *sizes, True, SCALE, *types)
    query = given.query.squeeze(1).split([RANK, ROPE], -1)
    return lambda cache: wrapper.run(*query, *cache.squeeze(2).split([RANK, ROPE], -1))


def _triton(given: Operands) -> Step:
    """Ours in Triton, which `torch.ops.mla_opt` takes where there is no compiled library."""
    import torch

    from mla_opt.operator.torch import triton_launch as launch
    from mla_opt.operator.torch.call import Call

    point = given.point
    query = given.query.transpose(1, 2).contiguous()
    latent = torch.randn_like(query[:, :1])
    past_len = given.lengths - 1

    def step(cache: Any) -> Any:
        rows = cache.view(point.batch, 1, -1, WIDTH)
        call = Call(query, latent, rows, past_len, None, None, None, SCALE, RANK, True)
        return launch.attend_in_place(call, given.processors)

    return step


def _torch(given: Operands) -> Step:
    import torch

    point, heads = given.point, given.query.squeeze(1) * SCALE

    def step(cache: Any) -> Any:
        rows = cache.view(point.batch, -1, WIDTH)[:, : point.keys]
        return torch.softmax(heads @ rows.transpose(1, 2), -1) @ rows[..., :RANK]

    return step


PEERS: dict[str, tuple[tuple[str, ...], Prepare]] = {
    "FlashMLA": (("flash_mla",), _flash_mla),
    "FlashInfer": (("flashinfer.mla",), _flashinfer),
    "Triton": (("triton", "mla_opt.operator.torch.triton_launch"), _triton),
    "torch": ((), _torch),
}
