"""The peers of the benchmark (tests/gpu/peers.py) as far as they can be called without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="the peers are called through torch")

from tests.gpu import peers  # noqa: E402
from tests.gpu.decode import RANK, WIDTH, Point  # noqa: E402

POINT = Point(heads=4, keys=150, batch=3)
ROOT = Path(__file__).parents[3]


@pytest.fixture
def given():
    torch.manual_seed(0)
    return peers.operands(POINT, 2, "cpu")


def module(monkeypatch, name, **content):
    made = ModuleType(name)
    made.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, made)


def attend(query, rows, scale):
    return (scale * query.float() @ rows.float().T).softmax(-1) @ rows[:, :RANK].float()


def test_caches_have_whole_pages(given):
    assert given.caches[0].shape == (9, 64, 1, WIDTH)
    assert len(given.caches) == 2
    assert given.table.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert given.lengths.tolist() == [150] * 3


def test_torch(given):
    peers.check(peers._torch(given), given)


def test_what_computes_something_else_is_no_peer(given):
    step = peers._torch(given)
    with pytest.raises(AssertionError, match="computes something else: off by"):
        peers.check(lambda cache: step(cache) * 1.2, given)
    with pytest.raises(AssertionError, match="computes something else: off by"):
        peers.check(lambda cache: step(cache.roll(1, 1)), given)


def test_flash_mla_gets_what_its_interface_asks_for(given, monkeypatch):
    def flash_mla_with_kvcache(
        q, k_cache, block_table, cache_seqlens, head_dim_v, tile_scheduler_metadata,
        num_splits=None, softmax_scale=None, causal=False, use_legacy=False,
    ):  # fmt: skip
        assert (head_dim_v, tile_scheduler_metadata, use_legacy) == (RANK, "plan", True)
        assert (block_table.dtype, cache_seqlens.dtype) == (torch.int32, torch.int32)
        output = [
            attend(q[b, 0], k_cache[pages.long()].view(-1, WIDTH)[:length], softmax_scale)
            for b, (pages, length) in enumerate(zip(block_table, cache_seqlens))
        ]
        return torch.stack(output).unsqueeze(1), "sums"

    module(
        monkeypatch,
        "flash_mla",
        flash_mla_with_kvcache=flash_mla_with_kvcache,
        get_mla_metadata=lambda: ("plan", None),
    )
    peers.check(peers._flash_mla(given), given)


def test_flashinfer_gets_what_its_interface_asks_for(given, monkeypatch):
    class BatchMLAPagedAttentionWrapper:
        def __init__(
            self, float_workspace_buffer, use_cuda_graph=False, qo_indptr=None, kv_indptr=None,
            kv_indices=None, kv_len_arr=None,
        ):  # fmt: skip
            assert use_cuda_graph
            self.sizes = [len(x) for x in (qo_indptr, kv_indptr, kv_indices, kv_len_arr)]

        def plan(
            self, qo_indptr, kv_indptr, kv_indices, kv_len_arr, num_heads, head_dim_ckv,
            head_dim_kpe, page_size, causal, sm_scale, q_data_type, kv_data_type,
        ):  # fmt: skip
            planned = (qo_indptr, kv_indptr, kv_indices, kv_len_arr)
            assert [len(x) for x in planned] == self.sizes
            assert {x.dtype for x in planned} == {torch.int32}
            assert qo_indptr.tolist() == [0, 1, 2, 3]
            assert (num_heads, head_dim_ckv, head_dim_kpe) == (4, RANK, 64)
            assert q_data_type == kv_data_type == torch.bfloat16
            self.planned, self.scale = planned, sm_scale

        def run(self, q_nope, q_pe, ckv_cache, kpe_cache):
            _, starts, indices, lengths = self.planned
            query = torch.cat([q_nope, q_pe], -1)
            cache = torch.cat([ckv_cache, kpe_cache], -1)
            output = []
            for b, length in enumerate(lengths):
                pages = indices[starts[b] : starts[b + 1]].long()
                output.append(attend(query[b], cache[pages].view(-1, WIDTH)[:length], self.scale))
            return torch.stack(output)

    module(monkeypatch, "flashinfer")
    name = BatchMLAPagedAttentionWrapper.__name__
    module(monkeypatch, "flashinfer.mla", **{name: BatchMLAPagedAttentionWrapper})
    peers.check(peers._flashinfer(given), given)


# float16: Triton's interpreter multiplies bfloat16 wrongly. New rows are written, so the caches too
# must be those of our kernel.
TRITON = """
from dataclasses import replace
import torch
from tests.gpu import peers
from tests.gpu.decode import Point
given = peers.operands(Point(4, 150, 3), 1, "cpu")
half = [cache.half() for cache in given.caches]
given = replace(given, query=given.query.half(), caches=half, processors=2)
before = half[0].clone()
peers.check(peers._triton(given), given)
changed = (half[0] != before).any(-1).view(3, -1).nonzero().tolist()
assert changed == [[0, 149], [1, 149], [2, 149]], changed
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is released for Linux")
def test_triton_in_its_interpreter():
    done = subprocess.run(
        [sys.executable, "-c", TRITON],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_is_not_there_is_told_and_nothing_else(monkeypatch):
    def broken(name):
        if name == "flash_mla":
            raise OSError("libcuda.so.1: cannot open\nshared object file")
        if name.startswith("flashinfer"):
            raise ModuleNotFoundError("No module named 'flashinfer'")

    monkeypatch.setattr(peers.importlib, "import_module", broken)
    found, absent = peers.available()
    assert list(found) == ["Triton", "torch"]
    assert absent == {
        "FlashMLA": "OSError: libcuda.so.1: cannot open shared object file",
        "FlashInfer": "ModuleNotFoundError: No module named 'flashinfer'",
    }


def test_without_torch_there_are_no_peers(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found, absent = peers.available()
    assert found == {}
    assert set(absent) == set(peers.PEERS)
