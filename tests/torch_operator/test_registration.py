"""What PyTorch demands of an operator: schema, fakes, tracing, and what is refused."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mla_opt.errors import InputError
from mla_opt.operator import Signature
from mla_opt.operator.torch import cpu as torch_cpu
from mla_opt.operator.torch.call import make_call
from mla_opt.operator.torch.composite import attend_composite
from tests.operator.cases import (
    ALL_SIGNATURES,
    BATCH,
    HEADS,
    NARROW_SIGNATURES,
    RANK,
    ROPE,
    name,
    operands,
)
from tests.torch_operator.calls import IN_PLACE, OPERATOR, attributes, positional

EVERYTHING = Signature(has_cache=True, in_place=True, split=True, bias="additive", sink=True)
WRITING = [s for s in ALL_SIGNATURES if s.in_place and s.has_latent]
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
# Tracing takes a second each: one call of each way to keep rows, with everything else mixed in.
TRACED = [
    Signature(causal=True, sink=True),
    Signature(has_cache=True, bias="boolean"),
    Signature(has_cache=True, split=True, causal=True),
    Signature(has_cache=True, in_place=True, bias="additive"),
    EVERYTHING,
    Signature(has_latent=False, has_cache=True, in_place=True),
    NARROW_SIGNATURES[2],
]


@pytest.mark.parametrize("signature", ALL_SIGNATURES + NARROW_SIGNATURES, ids=name)
def test_opcheck(signature):
    given = positional(operands(signature))
    torch.library.opcheck(OPERATOR.default, given, attributes(signature), test_utils=CHECKS)
    if signature in WRITING:
        torch.library.opcheck(IN_PLACE.default, given, attributes(signature), test_utils=CHECKS)


@pytest.mark.parametrize("signature", TRACED, ids=name)
def test_opcheck_of_tracing(signature):
    given = positional(operands(signature))
    dynamic = "test_aot_dispatch_dynamic"
    torch.library.opcheck(OPERATOR.default, given, attributes(signature), test_utils=dynamic)
    if signature in WRITING:
        torch.library.opcheck(IN_PLACE.default, given, attributes(signature), test_utils=dynamic)


@pytest.mark.parametrize("signature", ALL_SIGNATURES + NARROW_SIGNATURES, ids=name)
def test_the_fake_says_what_the_kernels_give(signature):
    given = positional(operands(signature))
    real = OPERATOR(*given, **attributes(signature))
    on_meta = [None if x is None else x.to("meta") for x in given]
    for fake, made in zip(OPERATOR(*on_meta, **attributes(signature)), real):
        assert (fake.shape, fake.dtype, fake.stride()) == (made.shape, made.dtype, made.stride())


@pytest.mark.parametrize("signature", ALL_SIGNATURES + NARROW_SIGNATURES, ids=name)
def test_pytorchs_operators_need_no_values(signature):
    """They run on a device that holds shapes alone."""
    given = positional(operands(signature))
    on_meta = [None if x is None else x.to("meta") for x in given]
    made = attend_composite(make_call(*on_meta, **attributes(signature)))
    for one, other in zip(made, OPERATOR(*given, **attributes(signature)), strict=True):
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


BAD = [
    ("query", zeros(BATCH, HEADS, 5), "query has rank 3, expected 4"),
    ("query", zeros(BATCH, HEADS, 5, 5), "kv_lora_rank is 6, but query has width 5"),
    ("query", zeros(BATCH, HEADS, 5, 10, dtype=torch.int32), "query is int32, expected float32"),
    ("latent", zeros(BATCH, 1, 5, 9), "latent has width 9, expected 10"),
    ("latent", zeros(BATCH, 2, 5, 10), "latent has axis 1 2, expected 1"),
    ("latent", zeros(BATCH, 5, 10), "latent has rank 3, expected 4"),
    ("latent", zeros(BATCH, 1, 5, 10, dtype=torch.float16), "latent is float16, expected float32"),
    ("cache", zeros(2, 1, 10, 6), "cache has batch 2, expected 3"),
    ("cache", zeros(BATCH, 1, 10, 10), "cache has width 10, expected 6"),
    (
        "cache",
        zeros(BATCH, 1, 10, 6, dtype=torch.float64),
        "cache is float64, expected float32, float16 or bfloat16",
    ),
    ("rope_cache", zeros(BATCH, 1, 10, 3), "rope_cache has width 3, expected 4"),
    ("rope_cache", zeros(BATCH, 1, 9, 4), "rope_cache has 9 rows, cache has 10"),
    (
        "rope_cache",
        zeros(BATCH, 1, 10, 4, dtype=torch.float16),
        "rope_cache is float16, expected float32",
    ),
    ("past_len", zeros(2, dtype=torch.int32), "past_len has 2 elements, expected 3"),
    ("past_len", zeros(BATCH, dtype=torch.int64), "past_len is int64, expected int32"),
    ("bias", zeros(BATCH, 1, 5, 7), "bias has size 7 on axis 3 .* not broadcast to 10"),
    ("bias", zeros(), "bias has rank 0, expected 1 to 4"),
    ("bias", zeros(1, BATCH, HEADS, 5, 10), "bias has rank 5, expected 1 to 4"),
    ("bias", zeros(BATCH, 1, 5, 10, dtype=torch.float16), "bias is float16, expected bool or fl"),
    ("sink", zeros(3), "sink has 3 elements, expected 2"),
    ("sink", zeros(2, dtype=torch.bfloat16), "sink is bfloat16, expected float32"),
    ("sink", torch.zeros(2, device="meta"), "sink is on meta, query on cpu"),
]
BAD_IDS = [f"{key}-{message[:30]}" for key, _, message in BAD]
KEYS = ("query", "latent", "cache", "past_len", "bias", "sink", "rope_cache")


def spoilt(key, value):
    given = positional(operands(EVERYTHING))
    given[KEYS.index(key)] = value
    return given


@pytest.mark.parametrize(("key", "value", "message"), BAD, ids=BAD_IDS)
@pytest.mark.parametrize("operator", [OPERATOR, IN_PLACE], ids=["functional", "in_place"])
def test_a_bad_operand_is_refused_by_name(operator, key, value, message):
    given = spoilt(key, value)
    with pytest.raises(InputError, match=message):
        operator(*given, **attributes(EVERYTHING))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x) for x in given]
        with pytest.raises(InputError, match=message):
            operator(*fakes, **attributes(EVERYTHING))


@pytest.mark.parametrize("past_len", [[0, 6, 1], [0, 1, -1]], ids=str)
@pytest.mark.parametrize("built", [True, False])
def test_lengths_that_leave_the_buffer(past_len, built, monkeypatch):
    monkeypatch.setattr(torch_cpu, "kernel_available", lambda: built)
    given = spoilt("past_len", torch.tensor(past_len, dtype=torch.int32))
    before = given[2].clone()
    with pytest.raises(InputError, match=r"past_len\[.\] is -?.; cache has 10 rows, and 5 are to"):
        IN_PLACE(*given, **attributes(EVERYTHING))
    assert torch.equal(given[2], before)


@pytest.mark.parametrize(
    ("absent", "message"),
    [
        (("latent", "cache", "rope_cache", "past_len"), "neither latent nor cache"),
        (("cache", "past_len"), "rope_cache is given without cache"),
        (("cache", "rope_cache"), "past_len is given without the cache"),
    ],
)
def test_operands_that_need_others(absent, message):
    given = [None if key in absent else x for key, x in zip(KEYS, spoilt("bias", None))]
    with pytest.raises(InputError, match=message):
        OPERATOR(*given, **attributes(EVERYTHING))


def test_no_rows_and_no_rotary_dims():
    with pytest.raises(InputError, match="0 rows; at least 1"):
        OPERATOR(zeros(1, 2, 1, 10), None, zeros(1, 1, 0, 10), scale=1.0, kv_lora_rank=6)
    rows = zeros(1, 1, 3, 6)
    with pytest.raises(InputError, match="query has 0 dims beyond kv_lora_rank"):
        OPERATOR(zeros(1, 2, 1, 6), None, rows, rope_cache=rows[..., :0], scale=1.0, kv_lora_rank=6)
    with pytest.raises(InputError, match="kv_lora_rank is 0"):
        OPERATOR(zeros(1, 2, 1, 6), rows, scale=1.0, kv_lora_rank=0)
    with pytest.raises(InputError, match="scale is nan"):
        OPERATOR(zeros(1, 2, 1, 6), rows, scale=float("nan"), kv_lora_rank=6)


@pytest.mark.parametrize("operator", [OPERATOR, IN_PLACE], ids=["functional", "in_place"])
def test_gradients_are_refused(operator):
    """Forward runs, as it must for parameters that are not frozen; backward says why not."""
    given = positional(operands(EVERYTHING))
    given[0].requires_grad_()
    result = operator(*given, **attributes(EVERYTHING))
    output = result if operator is IN_PLACE else result[0]
    with pytest.raises(RuntimeError, match=r"::latent_attention_? has no gradient: it is for"):
        output.sum().backward()
    with torch.no_grad():
        result = operator(*given, **attributes(EVERYTHING))
    assert not (result if operator is IN_PLACE else result[0]).requires_grad


@pytest.mark.parametrize("operator", [OPERATOR, IN_PLACE], ids=["functional", "in_place"])
def test_vmap_is_refused(operator):
    given = positional(operands(EVERYTHING))
    stacked = [None if x is None else torch.stack([x, x]) for x in given]

    def one(*operands):
        result = operator(*operands, **attributes(EVERYTHING))
        return result if operator is IN_PLACE else result[0]

    with pytest.raises(RuntimeError, match=r"::latent_attention_? cannot be vectorized"):
        torch.vmap(one)(*stacked)


def test_an_in_place_call_is_seen_by_autograd():
    """Whoever saved a cache for backward learns that it changed."""
    given = positional(operands(EVERYTHING))
    versions = given[2]._version, given[6]._version
    IN_PLACE(*given, **attributes(EVERYTHING))
    assert given[2]._version > versions[0]
    assert given[6]._version > versions[1]


def test_importing_mla_opt_imports_no_torch():
    code = "import sys, mla_opt.operator; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_sizes_that_nobody_knows_are_checked_when_they_are():
    """Symbols without a value, as data-dependent shapes make them."""

    class Model(torch.nn.Module):
        def forward(self, query, latent, keep):
            return OPERATOR(query, latent[:, :, keep.nonzero()[:, 0]], scale=1.0, kv_lora_rank=RANK)

    random = np.random.default_rng(0)
    query, latent = (
        torch.from_numpy(random.standard_normal((1, n, 7, RANK + ROPE))) for n in (2, 1)
    )
    keep = torch.tensor([True, False, True, True, False, True, True])
    program = torch.export.export(Model(), (query, latent, keep))
    for kept in (keep, ~keep):
        got = program.module()(query, latent, kept)[0]
        torch.testing.assert_close(got, Model()(query, latent, kept)[0])
