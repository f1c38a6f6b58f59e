"""How a call reaches the compiled CUDA library; no GPU is needed to look at what it is handed."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from mla_opt.operator.torch import cuda_library as torch_cuda_library
from mla_opt.operator.torch.call import make_call


class FakeLibrary:
    """Keeps what it is handed."""

    architectures = ("80", "90a", "120")

    def __init__(self):
        self.launched = []

    def workspace_bytes(self, problem, multiprocessors):
        return 256

    def launch(self, problem, multiprocessors, workspace, size, stream):
        self.launched.append((problem, multiprocessors, size, stream))


@pytest.fixture
def library(monkeypatch):
    fake = FakeLibrary()
    monkeypatch.setattr(torch_cuda_library, "_library", lambda: fake)
    monkeypatch.setattr(torch_cuda_library, "cuda_kernel_available", lambda: True)
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    stream = SimpleNamespace(cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return fake


def call(dtype=torch.bfloat16, c=256, r=32, **operands):
    query = torch.zeros(2, 3, 4, c + r, dtype=dtype)
    latent = torch.zeros(2, 1, 4, c + r, dtype=dtype)
    return make_call(query, latent, scale=0.1, kv_lora_rank=c, **operands)


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, True),
        ({"dtype": torch.float16, "c": 512, "r": 64}, True),
        ({"dtype": torch.float32}, False),
        ({"c": 128, "r": 32}, False),
    ],
)
def test_it_takes_what_it_has_kernels_for(library, options, taken):
    assert torch_cuda_library.takes(call(**options)) is taken


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 0), False), ((12, 1), True)],
)
def test_code_runs_where_it_was_compiled_for(library, monkeypatch, capability, runs):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert torch_cuda_library.takes(call()) is runs


def test_a_growing_cache_is_handed_over_with_its_longer_copy(library):
    cache = torch.zeros(2, 1, 5, 288, dtype=torch.bfloat16)
    outputs = torch_cuda_library.attend(call(cache=cache))
    ((problem, count, size, stream),) = library.launched
    assert (count, size, stream) == (132, 256, 77)
    assert (problem.batch, problem.heads, problem.query_len) == (2, 3, 4)
    assert (problem.new_len, problem.cache_len, problem.kv_lora_rank) == (4, 5, 256)
    assert problem.cache == cache.data_ptr()
    assert problem.new_cache == outputs.new_cache.data_ptr()
    assert outputs.new_cache.shape == (2, 1, 9, 288)


def test_a_buffer_is_written_in_place(library):
    cache = torch.zeros(2, 1, 9, 288, dtype=torch.bfloat16)
    past_len = torch.tensor([1, 5], dtype=torch.int32)
    torch_cuda_library.attend_in_place(call(cache=cache, past_len=past_len))
    ((problem, *_),) = library.launched
    assert problem.cache == problem.new_cache == cache.data_ptr()
    assert problem.past_len == past_len.data_ptr()
