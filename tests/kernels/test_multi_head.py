"""The kernel of ``MultiHeadLatentAttention`` in ONNX Runtime against its definition."""

from __future__ import annotations

import dataclasses
import functools

import ml_dtypes
import numpy as np
import onnx
import pytest

from mla_opt.geometry import MlaGeometry
from mla_opt.operator import Signature
from mla_opt.operator.kv_b import PLAIN, Storage
from mla_opt.operator.multi_head import MultiHeadSignature
from tests.kernels.host import BFLOAT16, run, session
from tests.operator import cases
from tests.operator.multi_head_cases import (
    REAL_STORAGES,
    SMALL,
    SMALL_STORAGES,
    V2_LITE,
    expected,
    factors,
    model,
    operands,
    real_operands,
    weights,
)

TOLERANCE = {
    np.dtype(np.float64): 1e-13,
    np.dtype(np.float32): 4e-6,
    np.dtype(np.float16): 4e-3,
    BFLOAT16: 3e-2,
}
FORMS = ("absorbed", "expanded")
#: Tiers that multiply rows of 16 bits, and of codes, in bfloat16.
ROUNDING_TIERS = ("amx", "avx512bf16")
PLAIN_WEIGHTS = weights(*SMALL_STORAGES["float32"], SMALL)


def matches(outputs, signature, feeds, **options):
    wanted = expected(signature, feeds, **options)
    assert len(outputs) == len(signature.outputs)
    for actual, cache in zip(outputs[1:], wanted[1:]):
        np.testing.assert_array_equal(actual.astype(np.float64), cache)
    return cases.difference(outputs[0], wanted.output) <= TOLERANCE[feeds["query"].dtype]


class Runtime:
    """A session in which the kernel has to stand for the node: there is no body."""

    def __init__(self, signature, feeds, **options):
        proto = model(signature, feeds, opset=21, constant=True, **options)
        del proto.functions[:]
        self._session = session(proto)

    def run(self, feeds):
        """All outputs; the weights are the session's."""
        given = {name: feed for name, feed in feeds.items() if not name.startswith("kv_b")}
        return run(self._session, given)


def test_the_kernel_takes_the_place_of_the_node(tmp_path):
    signature = MultiHeadSignature(Signature(has_cache=True), SMALL_STORAGES["packed4_zeros"][0])
    stored = weights(*SMALL_STORAGES["packed4_zeros"], SMALL)
    proto = model(signature, operands(signature, stored), opset=21, constant=True)
    session(proto, optimized=tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert [node.op_type for node in graph.node] == ["MultiHeadLatentAttention"]


@pytest.mark.parametrize("attention", cases.ALL_SIGNATURES, ids=cases.name)
def test_every_signature(attention):
    """Expanded; absorbed it is LatentAttention's kernel that has them."""
    signature = MultiHeadSignature(attention, form="expanded")
    runtime = Runtime(signature, operands(signature, PLAIN_WEIGHTS))
    for query_len in (1, 5):
        for past in (cases.PAST, 0) if attention.has_latent else (cases.PAST,):
            feeds = operands(signature, PLAIN_WEIGHTS, query_len=query_len, past=past)
            assert matches(runtime.run(feeds), signature, feeds)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("attention", cases.REDUCED_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_types_of_queries(form, attention, dtype):
    signature = MultiHeadSignature(attention, form=form)
    feeds = operands(signature, weights(PLAIN, dtype, None, SMALL), dtype=dtype)
    assert matches(Runtime(signature, feeds).run(feeds), signature, feeds)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("attention", cases.EVEN_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_halves_of_rows(form, attention, dtype):
    if attention.narrow and dtype not in (np.float16, BFLOAT16):
        pytest.skip("no narrower type")
    kept = {"cache_dtype": dtype} if attention.narrow else {"dtype": dtype}
    signature = MultiHeadSignature(attention, form=form)
    stored = weights(PLAIN, np.float32 if attention.narrow else dtype, None, SMALL)
    feeds = operands(signature, stored, **kept)
    assert matches(Runtime(signature, feeds).run(feeds), signature, feeds)


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__
)
@pytest.mark.parametrize("attention", cases.NARROW_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_narrow_caches(form, attention, dtype):
    signature = MultiHeadSignature(attention, form=form)
    feeds = operands(signature, PLAIN_WEIGHTS, cache_dtype=dtype)
    assert matches(Runtime(signature, feeds).run(feeds), signature, feeds)


@pytest.mark.parametrize("attention", cases.QUANTIZED_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_caches_of_codes(form, attention):
    signature = MultiHeadSignature(attention, form=form)
    feeds = operands(signature, PLAIN_WEIGHTS)
    assert matches(Runtime(signature, feeds).run(feeds), signature, feeds)


@pytest.mark.parametrize("storage", SMALL_STORAGES)
def test_every_storage(tier, storage):
    """Rows and blocks that fill no vector."""
    how, *types = SMALL_STORAGES[storage]
    stored = weights(how, *types, SMALL)
    for form in FORMS:
        signature = MultiHeadSignature(Signature(has_cache=True, causal=True), how, form)
        runtime = Runtime(signature, operands(signature, stored))
        for query_len in (1, 9):
            feeds = operands(signature, stored, query_len=query_len)
            assert matches(runtime.run(feeds), signature, feeds)


@pytest.mark.parametrize("storage", ["packed4_zeros", "int8_by_block_zeros", "float16"])
def test_factors_of_columns(tier, storage):
    """Straight from the bits, and unpacked; keys have others than values."""
    how, *types = SMALL_STORAGES[storage]
    stored = weights(how, *types, SMALL) | factors(SMALL)
    for form in FORMS:
        signature = MultiHeadSignature(Signature(has_cache=True, causal=True), how, form, True)
        runtime = Runtime(signature, operands(signature, stored))
        for query_len in (1, 9):
            feeds = operands(signature, stored, query_len=query_len)
            assert matches(runtime.run(feeds), signature, feeds)


def test_factors_of_columns_of_float64():
    signature = MultiHeadSignature(Signature(has_cache=True), PLAIN, factors=True)
    stored = weights(PLAIN, np.float64, None, SMALL) | factors(SMALL)
    feeds = operands(signature, stored, dtype=np.float64)
    assert matches(Runtime(signature, feeds).run(feeds), signature, feeds)


@functools.cache
def real_case(storage, query_len, with_factors=False):
    """Operands at real head widths, and what the definition makes of them."""
    signature, feeds = real_operands(
        storage, query_len=query_len, past=60, with_factors=with_factors
    )
    return signature, feeds, expected(signature, feeds, geometry=V2_LITE, scale=0.07)


def assert_real_widths(storage, query_len, form, with_factors=False):
    signature, feeds, wanted = real_case(storage, query_len, with_factors)
    signature = dataclasses.replace(signature, form=form)
    outputs = Runtime(signature, feeds, geometry=V2_LITE, scale=0.07).run(feeds)
    assert cases.difference(outputs[0], wanted.output) <= TOLERANCE[np.dtype(np.float32)]


@pytest.mark.parametrize("storage", REAL_STORAGES)
def test_real_head_widths_of_every_storage(tier, storage):
    """One token, whose products read the bits themselves."""
    if tier in ("amx", "avx512bf16"):
        pytest.skip("its products with weights are those of avx512")
    assert_real_widths(storage, 1, "absorbed")


@pytest.mark.parametrize(
    ("query_len", "form"), [(1, "absorbed"), (40, "absorbed"), (40, "expanded")]
)
def test_factors_of_columns_at_real_head_widths(tier, query_len, form):
    assert_real_widths("packed4_32_zeros", query_len, form, with_factors=True)


@pytest.mark.parametrize("storage", ["float32", "packed4_32_zeros"])
@pytest.mark.parametrize("form", FORMS)
def test_real_head_widths_of_many_tokens(tier, form, storage):
    """Products with numbers that are unpacked."""
    assert_real_widths(storage, 40, form)


@pytest.mark.parametrize(
    "attention",
    [
        Signature(has_cache=True, in_place=True, bias="additive", sink=True, causal=True),
        Signature(has_cache=True, in_place=True, split=True, bias="boolean", causal=True),
    ],
    ids=cases.name,
)
def test_prompts_on_buffers_of_every_length(tier, attention):
    """Tiles, blocks and tasks of the expanded form that are no full ones, ragged pasts, masks."""
    signature = MultiHeadSignature(attention, form="expanded")
    feeds = operands(signature, PLAIN_WEIGHTS, query_len=150, past=130)
    assert matches(Runtime(signature, feeds).run(feeds), signature, feeds)


#: Widths that every tier multiplies by whole vectors.
MIDDLE = MlaGeometry(3, 32, 16, 64, 96)


def on_buffers(attention, geometry, query_len, past, seed=0, **kept):
    """Operands of ragged sequences on buffers."""
    g = geometry
    feeds = cases.operands(
        attention,
        query_len=query_len,
        past=past,
        rope=g.qk_rope_head_dim,
        rank=g.kv_lora_rank,
        seed=seed,
        **kept,
    )
    shape = (cases.BATCH, g.num_heads, query_len, g.qk_head_dim)
    feeds["query"] = np.random.default_rng(7).standard_normal(shape).astype(np.float32)
    return feeds | weights(PLAIN, np.float32, None, g)


@pytest.mark.parametrize("kept", ["bfloat16", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_of_fewer_bits_at_real_head_widths(tier, form, kept):
    """Expanded, too, they are multiplied in bfloat16 where the processor has that."""
    codes, narrow = ("none", True) if kept == "bfloat16" else (kept, False)
    attention = Signature(
        has_cache=True,
        in_place=True,
        split=codes != "none",
        codes=codes,
        narrow=narrow,
        causal=True,
    )
    of_cache = {"cache_dtype": BFLOAT16} if narrow else {}
    feeds = on_buffers(attention, V2_LITE, 40, 90, **of_cache)
    signature = MultiHeadSignature(attention, form=form)
    wanted = expected(signature, feeds, geometry=V2_LITE, scale=0.07)
    outputs = Runtime(signature, feeds, geometry=V2_LITE, scale=0.07).run(feeds)
    rounds = tier in ROUNDING_TIERS and (form == "absorbed" or tier == "avx512bf16")
    low, high = (1e-5, 1e-2) if rounds else (0.0, 4e-6)
    assert low <= cases.difference(outputs[0], wanted.output) <= high


def seen_by_a_prompt(query_len, total):
    """What is above the diagonal or far below is hidden, and padding, and keys in the middle.

    Some of those are seen by a few rows alone, and one key by all rows behind it.
    """
    keys, rows = np.arange(total), np.arange(query_len)[:, None] + total - query_len
    padding = np.array([0, 70, 140])[:, None, None]
    seen = (keys <= rows) & (keys > rows - 400) & (keys >= padding)
    seen &= (keys < 200) | (keys == 384) | (keys >= 480)
    seen[:, 11:14, 192:384] = True
    seen[-1, 0] = False
    return seen


def seen_by_a_token(query_len, total):
    """Where one sequence ends the next one begins."""
    keys = np.arange(total)
    seen = np.stack([keys < 128, keys >= 128, keys >= 0])[:, None]
    return np.broadcast_to(seen, (3, query_len, total))


@pytest.mark.parametrize(
    ("seen", "query_len"), [(seen_by_a_prompt, 170), (seen_by_a_token, 1)], ids=["prompt", "token"]
)
@pytest.mark.parametrize("bias", ["additive", "boolean"])
@pytest.mark.parametrize("codes", ["none", "int8"])
@pytest.mark.parametrize("form", FORMS)
def test_blocks_of_keys_that_a_bias_hides(tier, form, codes, bias, seen, query_len):
    """They are passed over, wherever they are."""
    attention = Signature(
        has_cache=True, in_place=True, split=codes != "none", codes=codes, bias=bias
    )
    feeds = on_buffers(attention, MIDDLE, query_len, 400)
    feeds["past_len"][:] = 400
    allowed = seen(query_len, 400 + query_len)[:, None]
    values = np.random.default_rng(5).standard_normal(allowed.shape)
    hidden = {"additive": np.where(allowed, values, -np.inf).astype(np.float32), "boolean": allowed}
    feeds["bias"] = hidden[bias]
    signature = MultiHeadSignature(attention, form=form)
    wanted = expected(signature, feeds, geometry=MIDDLE, scale=0.14)
    outputs = Runtime(signature, feeds, geometry=MIDDLE, scale=0.14).run(feeds)
    rounds = codes != "none" and tier in ROUNDING_TIERS
    assert cases.difference(outputs[0], wanted.output) <= (2e-2 if rounds else 4e-6)
    everything = {"additive": np.zeros_like(values, np.float32), "boolean": np.ones_like(allowed)}
    seeing = expected(signature, feeds | {"bias": everything[bias]}, geometry=MIDDLE, scale=0.14)
    assert cases.difference(outputs[0], seeing.output) > 0.2


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_hidden_from_all_are_not_read(tier, form):
    """At real head widths: what they hold may even be no number."""
    attention = Signature(has_cache=True, in_place=True, bias="boolean")
    feeds = on_buffers(attention, V2_LITE, 40, 300)
    feeds["past_len"][:] = 300
    feeds["bias"] = np.ones_like(feeds["bias"])
    feeds["bias"][..., :256] = False
    signature = MultiHeadSignature(attention, form=form)
    wanted = expected(signature, feeds, geometry=V2_LITE, scale=0.07)
    feeds["cache"][:, :, :192] = np.nan
    outputs = Runtime(signature, feeds, geometry=V2_LITE, scale=0.07).run(feeds)
    assert cases.difference(outputs[0], wanted.output) <= 4e-6


def test_a_wrong_scale_and_swapped_heads_show():
    signature = MultiHeadSignature(Signature(has_cache=True))
    feeds = operands(signature, PLAIN_WEIGHTS)
    assert not matches(Runtime(signature, feeds, scale=0.26).run(feeds), signature, feeds)
    swapped = feeds | {"kv_b": np.roll(feeds["kv_b"], 8, axis=0)}
    assert not matches(Runtime(signature, swapped).run(feeds), signature, feeds)


PACKED = Storage(bits=4, block_size=4, zero_points="packed")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("query", (3, 2, 5, 2), "qk_nope_head_dim is 3, but query has width 2"),
        ("kv_b", (16, 2), "kv_b has rank 2, expected 3"),
        ("kv_b", (15, 2, 2), "kv_b has size 15 on axis 0, expected 16"),
        ("kv_b", (16, 2, 3), "kv_b has size 3 on axis 2, expected 2"),
        ("kv_b_scales", (16, 1), "kv_b_scales has size 1 on axis 1, expected 2"),
        ("kv_b_zero_points", (16, 2), "kv_b_zero_points has size 2 on axis 1, expected 1"),
        ("kv_b_factors", (1, 6), "kv_b_factors has size 1 on axis 0, expected 2"),
        ("latent", (3, 1, 5, 9), "latent has width 9, expected 10"),
        ("cache", (2, 1, 5, 10), "cache has batch 2, expected 3"),
    ],
)
def test_wrong_shapes_are_refused(name, shape, message):
    signature = MultiHeadSignature(Signature(has_cache=True), PACKED, factors=True)
    good = operands(signature, weights(PACKED, np.uint8, np.float32, SMALL) | factors(SMALL))
    proto = model(signature, good)
    del proto.functions[:]
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match=f"MultiHeadLatentAttention: {message}"):
        run(session(proto), good | {name: np.zeros(shape, good[name].dtype)})


@pytest.mark.parametrize(
    ("storage", "kinds", "message"),
    [
        (PLAIN, {"kv_b": np.int8}, "kv_b without kv_b_scales must be float32"),
        (PLAIN, {"kv_b": np.float64}, "or float64 as the query"),
        (PACKED, {"kv_b": np.int8}, "packed kv_b must be uint8"),
        (PACKED, {"kv_b_scales": np.float64}, "kv_b_scales must be float32, float16 or bfloat16"),
        (Storage(block_size=6), {"kv_b": np.int16}, "must be int8, uint8, float8e4m3fn"),
    ],
)
def test_wrong_types_are_refused(storage, kinds, message):
    signature = MultiHeadSignature(Signature(has_cache=True), storage)
    types = (np.uint8, np.float32) if storage.bits else (np.int8, np.float32)
    stored = PLAIN_WEIGHTS if storage == PLAIN else weights(storage, *types, SMALL)
    feeds = operands(signature, stored)
    feeds |= {name: feeds[name].astype(kind) for name, kind in kinds.items()}
    with pytest.raises(Exception, match=message):
        Runtime(signature, feeds).run(feeds)
