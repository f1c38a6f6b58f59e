"""The kernel in ONNX Runtime against the float64 reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mla_opt.kernels import cpu_tier
from mla_opt.operator import Signature, latent_attention
from mla_opt.operator.quantized_rows import quantize
from mla_opt.ort_values import from_ort_value, to_ort_value
from tests.kernels.host import BFLOAT16, run, session
from tests.operator import cases

TOLERANCE = {
    np.dtype(np.float64): 1e-13,
    np.dtype(np.float32): 3e-6,
    np.dtype(np.float16): 2e-3,
    BFLOAT16: 2e-2,
}
TYPES = [np.float32, np.float16, np.float64, BFLOAT16]


def type_name(dtype):
    return np.dtype(dtype).name


def matches(outputs, signature, feeds, *, scale=cases.SCALE, rank=cases.RANK, tolerance=None):
    expected = latent_attention(**feeds, scale=scale, kv_lora_rank=rank, causal=signature.causal)
    limit = tolerance or TOLERANCE[feeds["query"].dtype]
    assert len(outputs) == len(signature.outputs)
    for actual, cache in zip(outputs[1:], expected[1:]):
        np.testing.assert_array_equal(actual.astype(np.float64), cache)
    return cases.difference(outputs[0], expected.output) <= limit


def test_the_kernel_takes_the_place_of_the_node(tmp_path):
    signature = Signature(has_cache=True, causal=True)
    session(cases.model(signature, cases.operands(signature)), optimized=tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    assert [node.op_type for node in graph.node] == ["LatentAttention"]


@pytest.mark.parametrize("dtype", TYPES, ids=type_name)
@pytest.mark.parametrize("signature", cases.ALL_SIGNATURES, ids=cases.name)
def test_every_signature_and_type(signature, dtype):
    runtime = session(cases.model(signature, cases.operands(signature, dtype=dtype)))
    for query_len in (1, 5):
        for past in (cases.PAST, 0) if signature.has_latent else (cases.PAST,):
            feeds = cases.operands(signature, query_len=query_len, past=past, dtype=dtype)
            assert matches(run(runtime, feeds), signature, feeds)


@pytest.mark.parametrize("dtype", TYPES, ids=type_name)
@pytest.mark.parametrize(("rank", "rope"), [(cases.RANK, 4), (3, 5), (cases.RANK, 0), (32, 64)])
@pytest.mark.parametrize("signature", cases.EVEN_SIGNATURES, ids=cases.name)
def test_halves_of_rows(signature, rank, rope, dtype):
    if signature.narrow and dtype not in (np.float16, BFLOAT16):
        pytest.skip("no narrower type")
    kept = {"cache_dtype": dtype} if signature.narrow else {"dtype": dtype}
    proto = cases.model(signature, cases.operands(signature, **kept), rank=rank)
    runtime = session(proto)
    for query_len, past in ((1, cases.PAST), (5, cases.PAST), (5, 0)):
        if past or signature.has_latent:
            given = {"query_len": query_len, "past": past, "rank": rank, "rope": rope}
            feeds = cases.operands(signature, **given, **kept)
            # Some tiers round queries to a bfloat16 cache.
            limit = TOLERANCE[np.dtype(dtype)] if dtype == BFLOAT16 else None
            outputs = run(runtime, feeds)
            assert matches(outputs, signature, feeds, rank=rank, tolerance=limit)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=type_name)
@pytest.mark.parametrize(("heads", "query_len", "past"), [(1, 1, 700), (20, 1, 700), (5, 40, 200)])
def test_halves_of_rows_of_a_width_in_use(tier, heads, query_len, past, dtype):
    """576 numbers, in two tensors of 288: the latent part ends in the second."""
    random = np.random.default_rng(5)
    signature = Signature(has_cache=True, in_place=True, split=True, even=True, causal=True)
    shapes = {
        "query": (2, heads, query_len, 576),
        "latent": (2, 1, query_len, 576),
        "cache": (2, 1, past + query_len, 288),
        "rope_cache": (2, 1, past + query_len, 288),
    }
    feeds = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    feeds = {**feeds, "past_len": np.array([past, past // 3], np.int32)}
    feeds = {name: feeds[name] for name in signature.inputs}
    outputs = run(session(cases.model(signature, feeds, scale=1 / 24, rank=512)), feeds)
    assert matches(outputs, signature, feeds, scale=1 / 24, rank=512)
    swapped = feeds | {"cache": feeds["rope_cache"], "rope_cache": feeds["cache"]}
    others = latent_attention(**swapped, scale=1 / 24, kv_lora_rank=512, causal=True)
    assert cases.difference(outputs[0], others.output) > 0.1


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=type_name)
@pytest.mark.parametrize("signature", cases.NARROW_SIGNATURES, ids=cases.name)
def test_narrow_caches(signature, dtype):
    feeds = cases.operands(signature, cache_dtype=dtype)
    assert matches(run(session(cases.model(signature, feeds)), feeds), signature, feeds)


@pytest.mark.parametrize(("rank", "rope"), [(cases.RANK, 4), (cases.RANK, 0), (260, 3)])
@pytest.mark.parametrize("signature", cases.QUANTIZED_SIGNATURES, ids=cases.name)
def test_caches_of_codes(tier, signature, rank, rope):
    """What these widths are made of no tier multiplies in bfloat16: all are exact."""
    feeds = cases.operands(signature, rank=rank, rope=rope)
    proto = cases.model(signature, feeds, rank=rank)
    assert matches(run(session(proto), feeds), signature, feeds, rank=rank)


#: Tiers that multiply rows of codes in bfloat16.
ROUNDING_TIERS = ("amx", "avx512bf16")


@pytest.mark.parametrize("codes", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize(("rank", "rope"), [(512, 64), (256, 32)])
@pytest.mark.parametrize(("heads", "gain"), [(3, 1.0), (20, 1.0), (16, 1e6), (16, 1e-30)])
def test_codes_of_widths_in_use(tier, heads, gain, rank, rope, codes):
    random = np.random.default_rng(heads)
    signature = Signature(has_cache=True, in_place=True, split=True, codes=codes, causal=True)
    rows = random.standard_normal((2, 1, 303, rank + rope)).astype(np.float32)
    rows = (rows * random.uniform(0.1, 1.5, (2, 1, 303, 1)) * gain).astype(np.float32)
    cache, beside = quantize(rows, rank, codes)
    query = random.standard_normal((2, heads, 3, rank + rope)) / gain
    feeds = {
        "query": query.astype(np.float32),
        "latent": rows[:, :, :3],
        "cache": cache,
        "past_len": np.array([300, 151], np.int32),
        "rope_cache": beside,
    }
    scale = (rank + rope) ** -0.5
    runtime = session(cases.model(signature, feeds, scale=scale, rank=rank))
    tolerance = 2e-2 if cpu_tier() in ROUNDING_TIERS else 5e-6
    outputs = run(runtime, feeds)
    assert matches(outputs, signature, feeds, scale=scale, rank=rank, tolerance=tolerance)


@pytest.mark.parametrize("codes", ["int8", "float8_e4m3fn"])
def test_every_code_is_the_number_that_it_stands_for(tier, codes):
    """Each sequence attends to its only row: all codes, with scales of every size and mantissa."""
    rank, rope, every = 256, 32, np.arange(256, dtype=np.uint8)
    numbers = every.view(np.dtype(codes)).astype(np.float64)
    every = np.where(np.isfinite(numbers), every, 0)
    exponents, mantissas = np.meshgrid([-125, -88, -40, -3, 0, 20, 90], [1.0, 1.0078125, 1.9921875])
    scales = np.concatenate([(mantissas * 2.0**exponents).ravel(), [0.0, 2.0**-130]])
    signature = Signature(has_latent=False, has_cache=True, split=True, codes=codes)
    beside = np.zeros((len(scales), 1, 1, 40), BFLOAT16)
    beside[..., rope], beside[..., rope + 1] = scales[:, None, None], scales[::-1, None, None]
    feeds = {
        "query": np.ones((len(scales), 1, 1, rank + rope), np.float32),
        "cache": np.tile(every.view(np.dtype(codes)), (len(scales), 1, 1, 1)),
        "rope_cache": beside,
    }
    (made,) = run(session(cases.model(signature, feeds, scale=0.0, rank=rank)), feeds)
    spread = np.stack([scales, scales[::-1]], axis=1).repeat(128, axis=1)
    wanted = np.where(np.isfinite(numbers), numbers, 0.0) * spread
    rounding = 2.0**-8 + 2.0**-11 if cpu_tier() in ROUNDING_TIERS else 2.0**-22
    lost = np.where(spread < 2.0**-120, 2.0**-126, 2.0**-15 * spread)
    assert (np.abs(made[:, 0, 0] - wanted) <= rounding * np.abs(wanted) + lost).all()


@pytest.mark.parametrize("codes", ["int8", "float8_e4m3fn"])
def test_a_row_that_is_not_finite_is_seen(tier, codes):
    """Not a code that means some number: whoever attends to the row gets no number."""
    signature = Signature(has_cache=True, split=True, codes=codes)
    feeds = cases.operands(signature, rank=160)
    for wrong in (np.nan, np.inf):
        feeds["latent"][1, 0, 2, 150] = wrong
        outputs = run(session(cases.model(signature, feeds, rank=160)), feeds)
        finite = np.isfinite(outputs[0])
        assert finite[0].all()
        assert finite[2].all()
        assert not finite[1, ..., 128:].any()


@pytest.mark.parametrize("dtype", TYPES[:1] + TYPES[3:], ids=type_name)
@pytest.mark.parametrize("rope", [0, 3, 4])
@pytest.mark.parametrize("query_len", [1, 3, 64])
def test_every_tier(tier, query_len, rope, dtype):
    """Masks, sinks and lengths that fill no vector."""
    signature = Signature(has_cache=True, in_place=True, bias="additive", sink=True, causal=True)
    feeds = cases.operands(signature, query_len=query_len, past=150, rope=rope, dtype=dtype)
    assert matches(run(session(cases.model(signature, feeds)), feeds), signature, feeds)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=type_name)
@pytest.mark.parametrize(("rank", "rope"), [(512, 64), (256, 32), (512, 0), (96, 30)])
@pytest.mark.parametrize("heads", [1, 3, 16, 20])
def test_widths_and_heads_in_use(tier, heads, rank, rope, dtype):
    random = np.random.default_rng(heads)
    signature = Signature(has_cache=True, causal=True)
    shapes = {
        "query": (2, heads, 2, rank + rope),
        "latent": (2, 1, 2, rank + rope),
        "cache": (2, 1, 300, rank + rope),
    }
    feeds = {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    scale = (rank + rope) ** -0.5
    runtime = session(cases.model(signature, feeds, scale=scale, rank=rank))
    assert matches(run(runtime, feeds), signature, feeds, scale=scale, rank=rank)


@pytest.mark.parametrize("gain", [1e-12, 1, 8, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=type_name)
def test_every_tier_is_as_exact_as_float32(tier, dtype, gain):
    """Some multiply other numbers than floats: nothing gets lost, whatever the magnitude."""
    if dtype == np.float16:
        gain = np.clip(gain, 1e-2, 1e2)
    random = np.random.default_rng(1)
    shapes = {"query": (1, 20, 3, 576), "latent": (1, 1, 3, 576), "cache": (1, 1, 1500, 576)}
    feeds = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    feeds = {name: feed * (gain if name != "query" else 1 / gain) for name, feed in feeds.items()}
    # All but the cache are floats; new rows are such that the cache can keep them.
    feeds = {name: feed.astype(dtype).astype(np.float32) for name, feed in feeds.items()}
    feeds["cache"] = feeds["cache"].astype(dtype)
    signature = Signature(has_cache=True, narrow=dtype == np.float16, causal=True)
    runtime = session(cases.model(signature, feeds, scale=1 / 24, rank=512))
    output = run(runtime, feeds)[0].astype(np.float64)
    expected = latent_attention(**feeds, scale=1 / 24, kv_lora_rank=512, causal=True).output
    error = np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2))
    # 4e-7 to 8e-7; numbers of 16 bits alone give 1e-5 and more.
    assert error < 1.5e-6


def test_the_comparison_notices_a_wrong_scale():
    signature = Signature(has_cache=True, causal=True)
    feeds = cases.operands(signature)
    outputs = run(session(cases.model(signature, feeds, scale=0.2)), feeds)
    assert not matches(outputs, signature, feeds)


@pytest.mark.parametrize("split", [False, True])
def test_an_empty_cache_may_have_no_address(split):
    """Programs give the first call a tensor of no rows, and need no memory for it."""
    signature = Signature(has_cache=True, split=split, causal=True)
    feeds = cases.operands(signature, query_len=3, past=0)
    runtime = session(cases.model(signature, feeds))
    binding = runtime.io_binding()
    for name, feed in feeds.items():
        if feed.size:
            binding.bind_ortvalue_input(name, to_ort_value(feed))
        else:
            binding.bind_input(name, "cpu", 0, feed.dtype, feed.shape, 0)
    for output in runtime.get_outputs():
        binding.bind_output(output.name)
    runtime.run_with_iobinding(binding)
    outputs = [from_ort_value(value) for value in binding.get_outputs()]
    assert matches(outputs, signature, feeds)


@pytest.mark.parametrize("codes", ["int8", "float8_e4m3fn"])
def test_bound_buffers_of_codes_are_written_in_place(codes):
    signature = Signature(has_cache=True, in_place=True, split=True, codes=codes)
    feeds = cases.operands(signature, query_len=2, past=9)
    kept = {name: feeds[name].copy() for name in ("cache", "rope_cache")}
    values = {name: to_ort_value(feed) for name, feed in {**feeds, **kept}.items()}
    runtime = session(cases.model(signature, feeds))
    binding = runtime.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")
    for name in kept:
        binding.bind_ortvalue_output(f"new_{name}", values[name])
    runtime.run_with_iobinding(binding)
    expected = latent_attention(**feeds, scale=cases.SCALE, kv_lora_rank=cases.RANK)
    for name, wanted in zip(kept, expected[1:]):
        written = from_ort_value(values[name]).astype(np.float64)
        np.testing.assert_array_equal(written, wanted)


@pytest.mark.parametrize("split", [False, True])
def test_a_bound_buffer_is_written_in_place_and_nowhere_else(split):
    """Input and output are one buffer; only the rows behind each length change."""
    signature = Signature(has_cache=True, in_place=True, split=split, causal=True)
    feeds = cases.operands(signature, query_len=2, past=9)
    runtime = session(cases.model(signature, feeds))
    values = {name: to_ort_value(feed.copy()) for name, feed in feeds.items()}
    binding = runtime.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("output")
    names = ["cache", "rope_cache"] if split else ["cache"]
    for name in names:
        binding.bind_ortvalue_output(f"new_{name}", values[name])
    runtime.run_with_iobinding(binding)
    rank, rope = cases.RANK, cases.ROPE
    columns = {"cache": slice(0, rank if split else rank + rope), "rope_cache": slice(rank, None)}
    for name in names:
        expected = feeds[name].copy()
        for sequence, past in enumerate(feeds["past_len"]):
            new = feeds["latent"][sequence, 0][:, columns[name]]
            expected[sequence, 0, past : past + 2] = new
        np.testing.assert_array_equal(values[name].numpy(), expected)


def test_one_thread_and_several_agree_to_rounding():
    random = np.random.default_rng(0)
    signature = Signature(has_cache=True)
    feeds = {
        "query": random.standard_normal((1, 16, 1, 576), np.float32),
        "latent": random.standard_normal((1, 1, 1, 576), np.float32),
        "cache": random.standard_normal((1, 1, 5000, 576), np.float32),
    }
    proto = cases.model(signature, feeds, rank=512)
    one, two = (run(session(proto, threads=threads), feeds) for threads in (1, 2))
    np.testing.assert_array_equal(one[0], two[0])


IN_PLACE = Signature(has_cache=True, in_place=True, causal=True)
SPLIT = Signature(has_cache=True, split=True)
EVEN = Signature(has_cache=True, split=True, even=True)
MASKED = Signature(has_cache=True, bias="additive", sink=True)
CODES = Signature(has_cache=True, split=True, codes="int8")


def _reshaped(feeds, name, *shape):
    return {**feeds, name: np.zeros(shape, feeds[name].dtype)}


@pytest.mark.parametrize(
    ("signature", "name", "shape", "message"),
    [
        (SPLIT, "query", (3, 2, 5), "query has rank 3, expected 4"),
        (SPLIT, "query", (3, 2, 5, 5), "kv_lora_rank is 6, but query has width 5"),
        (SPLIT, "latent", (2, 1, 5, 10), "latent has batch 2, expected 3"),
        (SPLIT, "latent", (3, 2, 5, 10), "latent has axis 1 2, expected 1"),
        (SPLIT, "latent", (3, 1, 5, 9), "latent has width 9, expected 10"),
        (SPLIT, "cache", (3, 1, 5, 7), "cache has width 7, expected 6"),
        (SPLIT, "rope_cache", (3, 1, 4, 4), "rope_cache has 4 rows, cache has 5"),
        (EVEN, "cache", (3, 1, 5, 6), "rope_cache has width 5, expected 4"),
        (EVEN, "rope_cache", (3, 1, 5, 4), "rope_cache has width 4, expected 5"),
        (EVEN, "rope_cache", (3, 1, 4, 5), "rope_cache has 4 rows, cache has 5"),
        (CODES, "rope_cache", (3, 1, 5, 4), "rope_cache has width 4, expected 8"),
        (CODES, "cache", (3, 1, 5, 10), "cache has width 10, expected 6"),
        (MASKED, "sink", (3,), "sink has 3 elements, expected 2"),
        (MASKED, "bias", (3, 1, 5, 9), "bias has size 9 on axis 3 .* expected 1 or 10"),
        (MASKED, "bias", (1, 3, 1, 5, 10), "bias has rank 5, expected 1 to 4"),
        (IN_PLACE, "past_len", (2,), "past_len has 2 elements, expected 3"),
        (IN_PLACE, "past_len", (3, 1), "past_len has rank 2, expected 1"),
    ],
)
def test_wrong_shapes_are_refused(signature, name, shape, message):
    good = cases.operands(signature)
    proto = cases.model(signature, good)
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.ClearField("shape")
    with pytest.raises(Exception, match=message):
        run(session(proto), _reshaped(good, name, *shape))


@pytest.mark.parametrize("past", [-1, 6, 2**31 - 1])
def test_wrong_lengths_are_refused_before_anything_is_written(past):
    feeds = cases.operands(IN_PLACE)
    feeds["past_len"] = np.array([0, past, 0], np.int32)
    message = rf"past_len\[1\] is {past}; cache has 10 rows, and 5 are to be added"
    with pytest.raises(Exception, match=message):
        run(session(cases.model(IN_PLACE, feeds)), feeds)


def test_a_bias_of_another_type_is_refused():
    feeds = cases.operands(MASKED)
    proto = cases.model(MASKED, feeds)
    del proto.functions[:]
    (bias,) = (value for value in proto.graph.input if value.name == "bias")
    bias.type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(Exception, match="bias is an unknown type, expected bool or float32"):
        run(session(proto), {**feeds, "bias": feeds["bias"].astype(np.int64)})
