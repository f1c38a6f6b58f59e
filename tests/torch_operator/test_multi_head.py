"""The operator that holds its weights, by everything that computes it, against its definition."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import mla_opt.operator.torch.multi_head.cpu as on_cpu
import mla_opt.operator.torch.multi_head.expanded as expanding
from mla_opt.errors import InputError
from mla_opt.operator import Signature
from mla_opt.operator.kv_b import PLAIN, Storage
from mla_opt.operator.multi_head import INPUTS, MultiHeadSignature
from mla_opt.operator.torch.multi_head import devices
from mla_opt.operator.torch.multi_head.call import make_multi_head_call
from mla_opt.operator.torch.multi_head.masks import blocks
from tests.operator import cases
from tests.operator.multi_head_cases import (
    REAL_STORAGES,
    SMALL,
    SMALL_STORAGES,
    V2_LITE,
    factors,
    operands,
    real_operands,
    weights,
)
from tests.torch_operator.multi_head_calls import (
    IN_PLACE,
    OPERATOR,
    assert_matches,
    attributes,
    positional,
)

FORMS = ("absorbed", "expanded")
PLAIN_WEIGHTS = weights(*SMALL_STORAGES["float32"], SMALL)
ALL_SIGNATURES = cases.ALL_SIGNATURES + cases.NARROW_SIGNATURES
WRITING = [s for s in ALL_SIGNATURES if s.in_place and s.has_latent]
EVERYTHING = Signature(has_cache=True, in_place=True, split=True, bias="additive", sink=True)
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


class Way:
    """What computes it: the core, PyTorch's operators on the CPU, or as on any device."""

    def __init__(self, name):
        self.name = name

    def __call__(self, given, options):
        if self.name == "any_device":
            return devices.attend_anywhere(make_multi_head_call(*given, **options))
        return OPERATOR(*given, **options)

    def in_place(self, given, options):
        if self.name == "any_device":
            return devices.attend_anywhere_in_place(make_multi_head_call(*given, **options))
        return IN_PLACE(*given, **options)


@pytest.fixture(params=["core", "aten", "any_device"])
def way(request, monkeypatch):
    if request.param == "aten":
        monkeypatch.setattr(on_cpu, "kernel_available", lambda: False)
        monkeypatch.setattr(expanding, "MOST_QUERIES", 3)  # blocks that are no full ones
        monkeypatch.setattr(expanding, "MOST_NUMBERS", 60)  # a head at a time
    elif request.param == "core":
        assert on_cpu.kernel_available()
    return Way(request.param)


@pytest.mark.parametrize("attention", ALL_SIGNATURES, ids=cases.name)
def test_every_signature(attention, way):
    """Expanded; absorbed it is LatentAttention that has them."""
    signature = MultiHeadSignature(attention, form="expanded")
    for query_len, past in ((1, 5), (5, 5), (5, 0)):
        if past or attention.has_latent:
            feeds = operands(signature, PLAIN_WEIGHTS, query_len=query_len, past=past)
            assert_matches(way(positional(feeds), attributes(signature)), signature, feeds)


@pytest.mark.parametrize("attention", WRITING[::3], ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_in_place(attention, form, way):
    """The buffers become what the functional form returns, and the output is the same."""
    signature = MultiHeadSignature(attention, form=form)
    feeds = operands(signature, PLAIN_WEIGHTS)
    for gaps in (False, True):
        given = positional(feeds)
        if gaps:  # buffers that are parts of others
            given = [_part(x) if n in ("cache", "rope_cache") else x for n, x in zip(INPUTS, given)]
        output = way.in_place(given, attributes(signature))
        buffers = [given[INPUTS.index(name)] for name in ("cache", "rope_cache")]
        outputs = (output, *(torch.empty(0) if x is None else x for x in buffers))
        assert_matches(outputs, signature, feeds)


def _part(tensor):
    return None if tensor is None else torch.cat([tensor, tensor], dim=-1)[..., : tensor.shape[-1]]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64], ids=str)
@pytest.mark.parametrize("attention", cases.REDUCED_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_types_of_queries(form, attention, dtype, way):
    signature = MultiHeadSignature(attention, form=form)
    feeds = operands(signature, weights(PLAIN, dtype, None, SMALL), dtype=dtype)
    assert_matches(way(positional(feeds), attributes(signature)), signature, feeds)


@pytest.mark.parametrize("storage", SMALL_STORAGES)
@pytest.mark.parametrize("form", FORMS)
def test_every_storage(form, storage, way):
    how, *types = SMALL_STORAGES[storage]
    signature = MultiHeadSignature(Signature(has_cache=True, causal=True), how, form)
    feeds = operands(signature, weights(how, *types, SMALL))
    assert_matches(way(positional(feeds), attributes(signature)), signature, feeds)


@pytest.mark.parametrize(
    ("storage", "dtype"),
    [("packed4_zeros", np.float32), ("float32", np.float32), ("int8_by_row", ml_dtypes.bfloat16)],
)
@pytest.mark.parametrize("form", FORMS)
def test_factors_of_columns(form, storage, dtype, way):
    how, *types = SMALL_STORAGES[storage]
    signature = MultiHeadSignature(Signature(has_cache=True, causal=True), how, form, True)
    stored = weights(how, *types, SMALL) | factors(SMALL)
    feeds = operands(signature, stored, dtype=dtype)
    assert_matches(way(positional(feeds), attributes(signature)), signature, feeds)


# New tokens, and past ones.
REAL = {"prompt": (70, 0), "chunk": (40, 60), "step": (1, 60)}


@pytest.mark.parametrize("storage", ["float32", "packed4_32_zeros"])
@pytest.mark.parametrize("call", REAL)
def test_real_head_widths(call, storage, way, monkeypatch):
    monkeypatch.setattr(expanding, "MOST_QUERIES", 32)
    monkeypatch.setattr(expanding, "MOST_NUMBERS", 5 * 100 * 640)
    query_len, past = REAL[call]
    signature, feeds = real_operands(storage, query_len=query_len, past=past)
    options = {"geometry": V2_LITE, "scale": 0.07}
    for form in ("auto", *FORMS):
        named = replace(signature, form=form)
        assert_matches(
            way(positional(feeds), attributes(named, **options)), named, feeds, **options
        )


@pytest.mark.parametrize("query_len", [37, 1])
@pytest.mark.parametrize("bias", ["additive", "boolean"])
def test_real_head_widths_of_a_padded_batch(query_len, bias, way):
    """Sequences of different lengths in one buffer, masked besides."""
    attention = Signature(has_cache=True, in_place=True, bias=bias, causal=True)
    signature = MultiHeadSignature(attention, form="expanded")
    geometry = replace(V2_LITE, num_heads=cases.HEADS)
    stored = weights(*REAL_STORAGES["float32"], geometry)
    feeds = operands(signature, stored, geometry, query_len=query_len, past=50, rank=512)
    options = {"geometry": geometry, "scale": 0.07}
    outputs = way(positional(feeds), attributes(signature, **options))
    assert_matches(outputs, signature, feeds, **options)


@pytest.mark.parametrize("bias", ["boolean", "additive"])
def test_blocks_end_with_what_is_seen(bias):
    """Nothing of what lies above the diagonal is computed but within a block."""
    signature = MultiHeadSignature(Signature(has_cache=True, bias=bias), form="expanded")
    feeds = operands(signature, PLAIN_WEIGHTS, query_len=9)
    feeds["bias"] = _triangle(bias, 9, 14)
    call = make_multi_head_call(*positional(feeds), **attributes(signature))
    assert [block.seen for block in blocks(call.attention, 14, 4)] == [9, 13, 14]


@pytest.mark.parametrize("bias", ["boolean", "additive"])
def test_a_mask_that_is_causal_is_told_as_such(bias):
    signature = MultiHeadSignature(Signature(bias=bias), form="expanded")
    feeds = operands(signature, PLAIN_WEIGHTS, query_len=9)
    for changed in (False, True):
        feeds["bias"] = _triangle(bias, 9, 9)
        if changed:
            feeds["bias"][0, 0, 3, 3] = feeds["bias"][0, 0, 0, 8]
        call = make_multi_head_call(*positional(feeds), **attributes(signature))
        causal = [block.is_causal for block in blocks(call.attention, 9, 5)]
        assert causal == ([True] if bias == "boolean" and not changed else [False, False])
        assert_matches(expanding.attend_expanded_by_blocks(call), signature, feeds)


def _triangle(bias, queries, seen):
    """What each query may see where the last one sees everything."""
    allowed = np.tril(np.ones((queries, seen), bool), seen - queries)[None, None]
    return allowed if bias == "boolean" else np.where(allowed, 0, -np.inf).astype(np.float32)


@pytest.mark.parametrize(
    ("sizes", "expanded"), [((512, 0), True), ((1, 4096), False), ((8, 4096), False)], ids=str
)
def test_the_form_of_fewer_products(sizes, expanded):
    """DeepSeek's dims cross at about 171 tokens."""
    query_len, past = sizes
    query = torch.empty(1, 16, query_len, 192, device="meta")
    kv_b = torch.empty(16 * 256, 512, device="meta")
    rows = [torch.empty(1, 1, n, 576, device="meta") for n in (query_len, past)]
    signature = MultiHeadSignature(Signature(has_cache=True, causal=True))
    call = make_multi_head_call(query, kv_b, *rows, **attributes(signature, V2_LITE))
    assert on_cpu.expands(call, on_cpu.rows_seen(call)) == expanded


@pytest.mark.parametrize(
    ("form", "query_len", "expanded"),
    [("absorbed", 512, False), ("expanded", 2, True), ("expanded", 1, False)],
)
def test_a_form_that_is_asked_for(form, query_len, expanded):
    """One new token is absorbed in every form."""
    signature = MultiHeadSignature(Signature(has_cache=True), form=form)
    feeds = operands(signature, PLAIN_WEIGHTS, query_len=query_len)
    call = make_multi_head_call(*positional(feeds), **attributes(signature))
    assert on_cpu.expands(call, on_cpu.rows_seen(call)) == expanded


@pytest.mark.parametrize("attention", cases.REDUCED_SIGNATURES, ids=cases.name)
def test_opcheck(attention):
    signature = MultiHeadSignature(attention)
    given = positional(operands(signature, PLAIN_WEIGHTS))
    options = attributes(signature)
    torch.library.opcheck(OPERATOR.default, given, options, test_utils=CHECKS)
    if attention in WRITING:
        torch.library.opcheck(IN_PLACE.default, given, options, test_utils=CHECKS)


def test_opcheck_of_tracing():
    signature = MultiHeadSignature(EVERYTHING)
    given = positional(operands(signature, PLAIN_WEIGHTS))
    for operator in (OPERATOR, IN_PLACE):
        torch.library.opcheck(
            operator.default, given, attributes(signature), test_utils="test_aot_dispatch_dynamic"
        )


@pytest.mark.parametrize("attention", cases.REDUCED_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_the_fake_says_what_everything_gives(attention, form, way):
    signature = MultiHeadSignature(attention, form=form)
    given, options = positional(operands(signature, PLAIN_WEIGHTS)), attributes(signature)
    with FakeTensorMode() as mode:
        fakes = OPERATOR(*[None if x is None else mode.from_tensor(x) for x in given], **options)
    on_meta = [None if x is None else x.to("meta") for x in given]
    computed = OPERATOR(*on_meta, **options)
    for fake, meta, made in zip(fakes, computed, way(given, options), strict=True):
        assert (meta.shape, meta.dtype, meta.stride()) == (made.shape, made.dtype, made.stride())
        assert (fake.shape, fake.dtype, fake.stride()) == (made.shape, made.dtype, made.stride())


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


PACKED = Storage(bits=4, block_size=4, zero_points="packed")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("query", zeros(3, 2, 5), "query has rank 3, expected 4"),
        ("query", zeros(3, 2, 5, 2), "qk_nope_head_dim is 3, but query has width 2"),
        ("query", zeros(3, 2, 5, 7, dtype=torch.int32), "query is int32, expected float32"),
        ("kv_b", zeros(16, 2, dtype=torch.uint8), "kv_b has rank 2, expected 3"),
        ("kv_b", zeros(15, 2, 2, dtype=torch.uint8), "kv_b has size 15 on axis 0, expected 16"),
        ("kv_b", zeros(16, 2, 3, dtype=torch.uint8), "kv_b has size 3 on axis 2, expected 2"),
        ("kv_b", zeros(16, 2, 2, dtype=torch.int8), "kv_b is int8, expected uint8"),
        ("kv_b", torch.zeros(16, 2, 2, device="meta"), "kv_b is on meta, query on cpu"),
        ("kv_b_scales", zeros(16, 1), "kv_b_scales has size 1 on axis 1, expected 2"),
        ("kv_b_scales", None, "kv_b_scales is missing, but block_size is 4"),
        (
            "kv_b_zero_points",
            zeros(16, 2, dtype=torch.uint8),
            "kv_b_zero_points has size 2 on axis 1, expected 1",
        ),
        ("kv_b_zero_points", zeros(16, 2, dtype=torch.float64), "kv_b_zero_points is float64"),
        ("kv_b_factors", zeros(2, 5), "kv_b_factors has size 5 on axis 1, expected 6"),
        ("kv_b_factors", zeros(2, 6, dtype=torch.float64), "kv_b_factors is float64"),
        ("latent", zeros(3, 1, 5, 9), "latent has width 9, expected 10"),
        ("cache", zeros(2, 1, 10, 6), "cache has batch 2, expected 3"),
        ("rope_cache", zeros(3, 1, 10, 3), "rope_cache has width 3, expected 4"),
        ("past_len", zeros(3, dtype=torch.int64), "past_len is int64, expected int32"),
        ("sink", zeros(3), "sink has 3 elements, expected 2"),
    ],
)
@pytest.mark.parametrize("operator", [OPERATOR, IN_PLACE], ids=["functional", "in_place"])
def test_a_bad_operand_is_refused_by_name(operator, key, value, message):
    signature = MultiHeadSignature(EVERYTHING, PACKED)
    given = positional(operands(signature, weights(PACKED, np.uint8, np.float32, SMALL)))
    given[INPUTS.index(key)] = value
    with pytest.raises(InputError, match=f"^MultiHeadLatentAttention: {message}"):
        operator(*given, **attributes(signature))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [None if x is None else mode.from_tensor(x) for x in given]
        with pytest.raises(InputError, match=f"^MultiHeadLatentAttention: {message}"):
            operator(*fakes, **attributes(signature))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "quick"}, "form is 'quick', not one of auto, absorbed, expanded"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"v_head_dim": 0}, "v_head_dim is 0, at least 1 is needed"),
        ({"block_size": 6}, "kv_b_scales is missing, but block_size is 6"),
        ({"bits": 3}, "3 bits; supported are"),
    ],
)
def test_a_bad_attribute_is_refused(options, message):
    signature = MultiHeadSignature(Signature(has_cache=True))
    given = positional(operands(signature, PLAIN_WEIGHTS))
    with pytest.raises(InputError, match=f"^MultiHeadLatentAttention: .*{message}"):
        OPERATOR(*given, **{**attributes(signature), **options})


@pytest.mark.parametrize("past_len", [[0, 6, 1], [0, 1, -1]], ids=str)
@pytest.mark.parametrize("built", [True, False])
def test_lengths_that_leave_the_buffer(past_len, built, monkeypatch):
    monkeypatch.setattr(on_cpu, "kernel_available", lambda: built)
    signature = MultiHeadSignature(EVERYTHING)
    given = positional(operands(signature, PLAIN_WEIGHTS))
    given[INPUTS.index("past_len")] = torch.tensor(past_len, dtype=torch.int32)
    before = given[3].clone()
    with pytest.raises(
        InputError, match=r"^MultiHead.*: past_len\[.\] is -?.; cache has 10 rows, and 5 are to"
    ):
        IN_PLACE(*given, **attributes(signature))
    assert torch.equal(given[3], before)


def test_gradients_and_vmap_are_refused():
    signature = MultiHeadSignature(Signature(has_cache=True))
    given = positional(operands(signature, PLAIN_WEIGHTS))
    given[1].requires_grad_()
    with pytest.raises(RuntimeError, match="::multi_head_latent_attention has no gradient"):
        OPERATOR(*given, **attributes(signature))[0].sum().backward()
    stacked = [torch.stack([x.detach(), x.detach()]) for x in given[:4]]
    with pytest.raises(RuntimeError, match="::multi_head_latent_attention cannot be vectorized"):
        torch.vmap(lambda *x: OPERATOR(*x, **attributes(signature))[0])(*stacked)


def test_nothing_to_attend_from():
    """No sequences, and no queries."""
    for batch, queries in ((0, 3), (2, 0)):
        query, latent = zeros(batch, 2, queries, 7), zeros(batch, 1, 3, 10)
        signature = MultiHeadSignature(Signature())
        given = (query, torch.from_numpy(PLAIN_WEIGHTS["kv_b"]), latent)
        for form in FORMS:
            options = attributes(replace(signature, form=form))
            assert OPERATOR(*given, **options)[0].shape == (batch, 2, queries, 5)
