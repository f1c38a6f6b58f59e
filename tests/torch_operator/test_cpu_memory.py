"""Blocks of memory for large new caches: lent, kept for the next step, and not kept for longer."""

from __future__ import annotations

import gc
import sys
import threading

import pytest
import torch

from mla_opt.kernels import kernel_available
from mla_opt.operator.torch import cpu_memory as torch_cpu_memory
from mla_opt.operator.torch.cpu_memory import LEAST_BYTES, BlockPool, empty_like_cache

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="blocks are lent on Linux alone")

MIB = 1 << 20
WIDTH = 256  # floats in a row: 1 KiB


def rows(pool: BlockPool, count: int) -> torch.Tensor:
    return pool.empty((1, 1, count, WIDTH), torch.float32)


def test_a_tensor_is_one_of_its_own() -> None:
    tensor = BlockPool().empty((2, 1, 5, 7), torch.bfloat16).fill_(3.0)
    assert tensor.shape == (2, 1, 5, 7)
    assert tensor.dtype == torch.bfloat16
    assert tensor.is_contiguous()
    assert not tensor._is_view()
    assert torch.equal(tensor, torch.full((2, 1, 5, 7), 3.0, dtype=torch.bfloat16))


def test_a_growing_cache_moves_between_two_blocks() -> None:
    pool = BlockPool()
    cache = rows(pool, 4096).fill_(1.0)
    blocks = set()
    for count in range(4097, 4137):
        grown = rows(pool, count)
        grown[:, :, :-1] = cache
        grown[:, :, -1] = count
        cache = grown
        blocks.add(cache.data_ptr())
    assert len(blocks) == 2
    assert cache[0, 0, 4096:, 0].tolist() == list(range(4097, 4137))
    assert bool((cache[:, :, :4096] == 1.0).all())


def test_tensors_in_use_share_nothing() -> None:
    pool = BlockPool()
    tensors = [rows(pool, 2048).fill_(float(i)) for i in range(5)]
    del tensors[2]
    tensors.append(rows(pool, 2048).fill_(9.0))
    assert [tensor.mean().item() for tensor in tensors] == [0.0, 1.0, 3.0, 4.0, 9.0]


def test_no_more_is_kept_than_is_in_use() -> None:
    pool = BlockPool()
    tensors = [rows(pool, 2048) for _ in range(4)]
    one = pool.lent_bytes // 4
    del tensors[0]
    assert (pool.lent_bytes, pool.free_bytes) == (3 * one, one)
    del tensors[0]
    assert (pool.lent_bytes, pool.free_bytes) == (2 * one, 2 * one)
    del tensors[0]
    assert (pool.lent_bytes, pool.free_bytes) == (one, one)
    del tensors[0]
    assert (pool.lent_bytes, pool.free_bytes) == (0, 0)


def test_a_block_serves_nothing_much_smaller() -> None:
    pool = BlockPool()
    held, large = rows(pool, 8192), rows(pool, 8192)
    freed = large.data_ptr()
    del large
    small = rows(pool, 1024)
    assert small.data_ptr() != freed
    assert pool.lent_bytes == 12 * MIB
    assert rows(pool, 8192).data_ptr() == freed
    del held


def test_views_keep_the_block() -> None:
    pool = BlockPool()
    view = rows(pool, 2048).fill_(5.0)[:, :, 7:9]
    gc.collect()
    other = rows(pool, 2048).fill_(6.0)
    assert bool((view == 5.0).all())
    assert bool((other == 6.0).all())


def test_several_threads() -> None:
    pool, wrong = BlockPool(), []

    def work(value: float) -> None:
        for count in range(64, 128):
            tensor = rows(pool, count).fill_(value)
            if not bool((tensor == value).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert pool.lent_bytes == pool.free_bytes == 0


@pytest.mark.parametrize("entered_by", ["a tensor that goes", "a tensor that comes"])
def test_what_is_freed_while_another_has_the_lock_is_not_kept(entered_by: str) -> None:
    """The garbage collector may run within the pool, and threads free what they like."""
    held: list[torch.Tensor] = []

    class Interrupted(BlockPool):
        def _drain(self) -> None:
            super()._drain()
            held.clear()  # its blocks come back while the lock is held

    pool = Interrupted()
    mine = [rows(pool, 512)]
    held.extend((rows(pool, 2048), rows(pool, 2048)))
    if entered_by == "a tensor that goes":
        mine.clear()
    else:
        mine.append(rows(pool, 256))
    assert not held
    assert not pool._returned
    assert sum(map(len, pool._free)) <= pool._lent
    assert pool._lent == sum(2 * MIB for _ in mine)


def test_small_caches_are_left_to_pytorch() -> None:
    before = torch_cpu_memory._pool.lent_bytes
    small = empty_like_cache(torch.empty(0), (1, 1, 16, 576))
    assert torch_cpu_memory._pool.lent_bytes == before
    large = empty_like_cache(torch.empty(0), (1, 1, LEAST_BYTES // 4, 1))
    assert torch_cpu_memory._pool.lent_bytes >= before + LEAST_BYTES
    assert small.shape[3] == 576
    assert large.shape[2] == LEAST_BYTES // 4


@pytest.mark.skipif(not kernel_available(), reason="the compiled core was not built")
def test_the_operator_lends_its_new_cache() -> None:
    import mla_opt.operator.torch.op  # noqa: F401

    past = LEAST_BYTES // (4 * 576) + 1
    cache = torch.randn(1, 1, past, 576)
    query, latent = torch.randn(1, 2, 1, 576), torch.randn(1, 1, 1, 576)
    before = torch_cpu_memory._pool.lent_bytes
    _, grown, _ = torch.ops.mla_opt.latent_attention(
        query, latent, cache, scale=0.1, kv_lora_rank=512, causal=True
    )
    assert torch_cpu_memory._pool.lent_bytes >= before + LEAST_BYTES
    assert torch.equal(grown, torch.cat([cache, latent], dim=2))
    del grown
    assert torch_cpu_memory._pool.lent_bytes == before
