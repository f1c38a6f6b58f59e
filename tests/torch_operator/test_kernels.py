"""The numbers of the operator on the CPU, by the compiled core and by PyTorch's own operators."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from mla_opt.operator import Signature
from mla_opt.operator.torch import cpu as torch_cpu
from mla_opt.operator.torch.call import make_call
from tests.operator.cases import (
    ALL_SIGNATURES,
    NARROW_SIGNATURES,
    REDUCED_SIGNATURES,
    name,
    operands,
)
from tests.torch_operator.calls import (
    BFLOAT16,
    IN_PLACE,
    OPERATOR,
    assert_matches,
    attributes,
    positional,
    tensor,
)

WRITING = [s for s in ALL_SIGNATURES if s.in_place and s.has_latent]


@pytest.fixture(params=["core", "composite"])
def kernel(request, monkeypatch):
    """Both ways to compute; the second is taken where the library was not built."""
    if request.param == "composite":
        monkeypatch.setattr(torch_cpu, "kernel_available", lambda: False)
    else:
        assert torch_cpu.kernel_available()
    return request.param


@pytest.mark.parametrize("signature", ALL_SIGNATURES + NARROW_SIGNATURES, ids=name)
def test_every_signature(signature, kernel):
    for query_len, past in ((1, 5), (5, 5), (5, 0)):
        if past or signature.has_latent:
            feeds = operands(signature, query_len=query_len, past=past)
            outputs = OPERATOR(*positional(feeds), **attributes(signature))
            assert_matches(outputs, signature, feeds)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64], ids=str)
@pytest.mark.parametrize("signature", REDUCED_SIGNATURES, ids=name)
def test_every_type(signature, dtype, kernel):
    feeds = operands(signature, dtype=dtype)
    outputs = OPERATOR(*positional(feeds), **attributes(signature))
    assert outputs[0].dtype == tensor(feeds["query"]).dtype
    assert_matches(outputs, signature, feeds)


@pytest.mark.parametrize("signature", NARROW_SIGNATURES, ids=name)
def test_caches_of_bfloat16(signature, kernel):
    feeds = operands(signature, cache_dtype=BFLOAT16)
    outputs = OPERATOR(*positional(feeds), **attributes(signature))
    # The core rounds queries and probabilities too where it computes in bfloat16.
    assert_matches(outputs, signature, feeds, tolerance=2e-2)


@pytest.mark.parametrize("signature", WRITING, ids=name)
def test_in_place(signature, kernel):
    feeds = operands(signature)
    given = positional(feeds)
    output = IN_PLACE(*given, **attributes(signature))
    rope_cache = torch.empty(0) if given[6] is None else given[6]
    assert_matches((output, given[2], rope_cache), signature, feeds)


def test_the_functional_form_leaves_its_operands(kernel):
    signature = Signature(has_cache=True, in_place=True, split=True)
    given = positional(operands(signature))
    before = [None if x is None else x.clone() for x in given]
    outputs = OPERATOR(*given, **attributes(signature))
    assert all(x is y or torch.equal(x, y) for x, y in zip(given, before))
    memory = [x.untyped_storage().data_ptr() for x in (*outputs, *given) if x is not None]
    assert len(set(memory)) == len(memory)


def strided(value: torch.Tensor | None) -> torch.Tensor | None:
    """The same numbers, with others between them."""
    if value is None:
        return None
    wide = value.repeat_interleave(2, dim=-1)
    return wide[..., ::2]


@pytest.mark.parametrize("in_place", [False, True])
def test_any_strides(in_place, kernel):
    signature = Signature(
        has_cache=True, in_place=True, split=True, bias="additive", sink=True, causal=True
    )
    feeds = operands(signature)
    given = [strided(value) for value in positional(feeds)]
    assert not given[2].is_contiguous()
    outputs = (IN_PLACE if in_place else OPERATOR)(*given, **attributes(signature))
    assert_matches((outputs, given[2], given[6]) if in_place else outputs, signature, feeds)


@pytest.mark.parametrize("kind", ["additive", "boolean"])
@pytest.mark.parametrize("shape", [(10,), (5, 1), (2, 1, 10), (3, 2, 5, 10), (1, 2, 1, 1)], ids=str)
def test_a_bias_of_any_shape_is_expanded_in_place(shape, kind, kernel):
    signature = Signature(has_cache=True, bias=kind, causal=True)
    feeds = operands(signature)
    random = np.random.default_rng(1)
    drawn = random.standard_normal(shape).astype(np.float32)
    feeds["bias"] = drawn > -0.5 if kind == "boolean" else drawn
    given = positional(feeds)
    assert_matches(OPERATOR(*given, **attributes(signature)), signature, feeds)
    given[4] = given[4].expand(3, 2, 5, 10)
    assert_matches(OPERATOR(*given, **attributes(signature)), signature, feeds)


def test_a_blind_row_gives_zeros(kernel):
    signature = Signature(bias="boolean", sink=True)
    feeds = operands(signature)
    feeds["bias"][:] = False
    feeds["sink"][:] = -np.inf
    output, *_ = OPERATOR(*positional(feeds), **attributes(signature))
    assert (output == 0).all()


@pytest.mark.parametrize("empty", ["batch", "heads", "query_len"])
def test_nothing_to_attend(empty, kernel):
    signature = Signature(has_cache=True, split=True)
    query, latent, cache, _, _, _, rope_cache = positional(operands(signature))
    if empty == "batch":
        query, latent, cache, rope_cache = query[:0], latent[:0], cache[:0], rope_cache[:0]
    elif empty == "heads":
        query = query[:, :0]
    else:
        query = query[:, :, :0]
    outputs = OPERATOR(query, latent, cache, rope_cache=rope_cache, **attributes(signature))
    assert outputs[0].shape == (*query.shape[:3], 6)
    assert torch.equal(outputs[1], torch.cat([cache, latent[..., :6]], dim=2))
    assert torch.equal(outputs[2], torch.cat([rope_cache, latent[..., 6:]], dim=2))


@pytest.mark.parametrize("team", ["PyTorch's", "our own"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads(threads, team, monkeypatch):
    if team == "our own":
        monkeypatch.setattr(torch_cpu, "_team", lambda: None)
    else:
        assert torch_cpu._team() is not None
    signature = Signature(has_cache=True, in_place=True, causal=True)
    feeds = operands(signature, query_len=64, past=1000)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        outputs = OPERATOR(*positional(feeds), **attributes(signature))
    finally:
        torch.set_num_threads(before)
    assert_matches(outputs, signature, feeds)


def test_widths_of_released_models():
    signature = Signature(has_cache=True, causal=True)
    random = np.random.default_rng(0)
    feeds = {
        "query": random.standard_normal((1, 4, 3, 576)).astype(np.float32),
        "latent": random.standard_normal((1, 1, 3, 576)).astype(np.float32),
        "cache": random.standard_normal((1, 1, 700, 576)).astype(np.float32),
    }
    outputs = OPERATOR(*positional(feeds), **attributes(signature, 512))
    assert_matches(outputs, signature, feeds, rank=512, tolerance=1e-5)


def test_inference_tensors_are_written_in_place(kernel):
    signature = Signature(has_cache=True, in_place=True)
    feeds = operands(signature)
    with torch.inference_mode():
        given = [None if x is None else x.clone() for x in positional(feeds)]
        output = IN_PLACE(*given, **attributes(signature))
    assert_matches((output, given[2], torch.empty(0)), signature, feeds)


@pytest.mark.parametrize("team", ["PyTorch's", "our own"])
def test_many_callers_at_once(team, monkeypatch):
    if team == "our own":
        monkeypatch.setattr(torch_cpu, "_team", lambda: None)
    signature = Signature(has_cache=True, causal=True)
    feeds = [operands(signature, query_len=9, past=400, seed=seed) for seed in range(4)]

    def call(feed):
        return [OPERATOR(*positional(feed), **attributes(signature)) for _ in range(10)]

    with ThreadPoolExecutor(4) as callers:
        for feed, results in zip(feeds, callers.map(call, feeds)):
            for outputs in results:
                assert_matches(outputs, signature, feed)


def test_a_child_process_computes(monkeypatch):
    """A fork has none of the parent's threads, and whoever waits for them waits forever."""
    monkeypatch.setattr(torch_cpu, "_team", lambda: None)
    signature = Signature(has_cache=True, causal=True)
    feeds = operands(signature, query_len=9, past=400)
    call = make_call(*positional(feeds), **attributes(signature))
    assert_matches(torch_cpu.attend_cpu(call), signature, feeds)
    child = os.fork()
    if child == 0:
        try:
            torch_cpu.attend_cpu(call)
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail("the child hangs")
        time.sleep(0.01)
    assert ended == (child, 0)
