"""Other kernels at the same sizes, those that are there: packages, and torch, are carried along.

Nothing is installed. FlashInfer compiles its kernel at first use, which takes a minute and nvcc.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable

from tests.gpu.decode import RANK, ROPE, WIDTH, Point, Timing

PAGE = 64
SCALE = 192**-0.5
_CALLS = 8


def available() -> dict[str, Callable[[Point], Callable[[], object]]]:
    """Peers by name: what each needs to be made ready for a point, to return one step."""
    found = {}
    if not _has("torch"):
        return found
    if _has("flash_mla"):
        found["FlashMLA (sgl-flash-mla)"] = _flash_mla
    if _has("flashinfer"):
        found["FlashInfer"] = _flashinfer
    found["torch matmul, softmax, matmul"] = _torch
    return found


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def time_step(prepare: Callable[[Point], Callable[[], object]], point: Point, turns: int) -> Timing:
    """Seconds of one step of a peer, captured in a graph as ours is."""
    import torch

    step = prepare(point)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
        step()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(_CALLS):
                step()
        graph.replay()
        stream.synchronize()
        each = [_elapsed(graph.replay) / _CALLS for _ in range(turns)]
    del graph, step
    torch.cuda.empty_cache()
    return Timing(min(each), statistics.median(each))


def _elapsed(work: Callable[[], object]) -> float:
    import torch

    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000


def _tensors(point: Point):
    """Query [B, 1, H, C+R], cache [pages, 64, 1, C+R], pages [B, T / 64], lengths [B]."""
    import torch

    options = {"device": "cuda", "dtype": torch.bfloat16}
    pages = -(-point.keys // PAGE)
    query = torch.randn(point.batch, 1, point.heads, WIDTH, **options)
    cache = torch.randn(point.batch * pages, PAGE, 1, WIDTH, **options)
    table = torch.arange(point.batch * pages, device="cuda", dtype=torch.int32)
    lengths = torch.full((point.batch,), point.keys, device="cuda", dtype=torch.int32)
    return query, cache, table.view(point.batch, pages), lengths


def _flash_mla(point: Point) -> Callable[[], object]:
    from flash_mla import flash_mla_with_kvcache, get_mla_metadata

    query, cache, table, lengths = _tensors(point)
    plan, _ = get_mla_metadata()
    return lambda: flash_mla_with_kvcache(
        query, cache, table, lengths, RANK, plan, softmax_scale=SCALE, causal=True, use_legacy=True
    )


def _flashinfer(point: Point) -> Callable[[], object]:
    import torch
    from flashinfer.mla import BatchMLAPagedAttentionWrapper

    query, cache, table, lengths = _tensors(point)
    starts = torch.arange(point.batch + 1, device="cuda", dtype=torch.int32)
    pages = starts * table.shape[1]
    wrapper = BatchMLAPagedAttentionWrapper(
        torch.empty(128 << 20, device="cuda", dtype=torch.int8),
        use_cuda_graph=True,
        qo_indptr=starts.clone(),
        kv_indptr=pages.clone(),
        kv_indices=table.view(-1).clone(),
        kv_len_arr=lengths.clone(),
    )
    wrapper.plan(
        starts,
        pages,
        table.view(-1),
        lengths,
        point.heads,
        RANK,
        ROPE,
        PAGE,
        True,
        SCALE,
        torch.bfloat16,
        torch.bfloat16,
    )
    packed_query, packed = query.squeeze(1), cache.squeeze(2)
    parts = (*packed_query.split([RANK, ROPE], -1), *packed.split([RANK, ROPE], -1))
    return lambda: wrapper.run(*parts)


def _torch(point: Point) -> Callable[[], object]:
    import torch

    query, cache, _, _ = _tensors(point)
    rows = cache.view(point.batch, -1, WIDTH)[:, : point.keys]
    heads = query.squeeze(1) * SCALE

    def step() -> object:
        weights = torch.softmax(heads @ rows.transpose(1, 2), -1)
        return weights @ rows[..., :RANK]

    return step
