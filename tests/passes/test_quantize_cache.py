from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.errors import InputError, PassError
from mla_opt.operator.quantized_rows import row_bytes
from mla_opt.passes.compress_cache import CompressCache
from mla_opt.passes.quantize_cache import QuantizeCache
from tests.graphs.latent_block import Block, build
from tests.passes.harness import assert_close, assert_generates_same, generate, prepared, run

APPENDED = ("absorb_weights", "release_shapes", "fuse_cache_append")
CODES = {"int8": "INT8", "fp8": "FLOAT8E4M3FN"}
TOLERANCE = {"int8": 3e-2, "fp8": 1.5e-1}
OPSET = 19


def appended(block: Block, mode: str = "packed"):
    model = build(block)
    model.opset_import[0].version = OPSET
    return prepared(model, CompressCache(mode), *APPENDED, prefill="absorbed")


def quantized(block: Block, cache_type: str, mode: str = "packed"):
    graph = appended(block, mode)
    (result,) = run(graph, QuantizeCache(cache_type))
    return graph, result


def ports(graph) -> dict[str, tuple[str, list[int | str]]]:
    ends = [*graph.model.graph.inputs, *graph.model.graph.outputs]
    return {
        end.name: (end.dtype.name, [d if isinstance(d, int) else d.value for d in end.shape])
        for end in ends
    }


@pytest.mark.parametrize("cache_type", CODES)
def test_a_cache_becomes_codes_and_what_is_beside_them(cache_type):
    before = ports(appended(Block()))
    graph, result = quantized(Block(), cache_type)
    assert (result.matched, result.rewritten) == (1, 1)
    after = ports(graph)
    changed = {name: port for name, port in after.items() if before.get(name) != port}
    assert {name: (kind, shape[3]) for name, (kind, shape) in changed.items()} == {
        "past.0.latent": (CODES[cache_type], 12),
        "past.0.latent_rope_scales": ("BFLOAT16", 8),
        "present.0.latent": (CODES[cache_type], 12),
        "present.0.latent_rope_scales": ("BFLOAT16", 8),
    }
    (site,) = graph.sites
    assert site.cache.row_bytes == row_bytes(12, 4) == 12 + 16


@pytest.mark.parametrize("cache_type", CODES)
@pytest.mark.parametrize("mode", ["packed", "static"])
@pytest.mark.parametrize(
    "block",
    [
        Block(),
        Block(layers=2, share=True),
        Block(cache="expanded"),
        Block(cache="packed"),
        Block(rope=0),
        Block(heads=16, latent=160, rope=8),
        Block(bias="computed", mask_from="cache"),
    ],
    ids=str,
)
def test_it_generates_the_same_but_for_the_codes(block, mode, cache_type):
    graph, _ = quantized(block, cache_type, mode)
    steps = ("write_cache_in_place",) if mode == "static" else ()
    run(graph, *steps, "clean_up")
    assert_generates_same(block, graph.model, TOLERANCE[cache_type] * block.layers)
    with pytest.raises(AssertionError):
        assert_generates_same(block, graph.model, 1e-6)


@pytest.mark.parametrize("cache_type", CODES)
def test_a_prompt_and_single_tokens_see_the_same_rows(cache_type):
    graph, _ = quantized(Block(), cache_type)
    run(graph, "clean_up")
    whole = generate(graph.model, Block(), (6,))
    assert np.isfinite(whole[0]).all()


@pytest.mark.parametrize("cache_type", CODES)
def test_the_operator_that_holds_its_weights_takes_codes(cache_type):
    absorbed, _ = quantized(Block(), cache_type)
    holding, _ = quantized(Block(), cache_type)
    run(holding, "hold_weights", "clean_up")
    run(absorbed, "clean_up")
    for seen, wanted in zip(generate(holding.model, Block()), generate(absorbed.model, Block())):
        assert_close(seen, wanted, 1e-5, cache_type)


def test_what_cannot_be_written_is_refused():
    graph = prepared(Block(), CompressCache("packed"), "absorb_weights", prefill="absorbed")
    with pytest.raises(PassError, match="run fuse_cache_append"):
        run(graph, QuantizeCache("int8"))
    split = appended(Block(), "keep")
    with pytest.raises(PassError, match="pack it first"):
        run(split, QuantizeCache("int8"))
    branched = prepared(Block(), CompressCache("packed"), *APPENDED, prefill="expanded")
    with pytest.raises(PassError, match="has an expanded form"):
        run(branched, QuantizeCache("int8"))


def test_a_cache_of_16_bits_is_refused():
    graph = appended(Block())
    for site in graph.sites:
        for past in site.cache.past:
            past.dtype = ir.DataType.FLOAT16
    with pytest.raises(InputError, match="is float16: only float32 caches can be kept as int8"):
        QuantizeCache("int8").run(graph)


def test_somebody_else_who_reads_the_rows_is_refused():
    graph = appended(Block())
    (site,) = graph.sites
    rows = site.cache.joined[0]
    node = ir.node("Abs", [rows], name="reader")
    node.outputs[0].name, node.outputs[0].dtype = "rows_read", ir.DataType.FLOAT
    graph.model.graph.append(node)
    graph.model.graph.outputs.append(node.outputs[0])
    with pytest.raises(InputError, match=r"is read by reader.* which cannot read rows of 8 bits"):
        QuantizeCache("int8").run(graph)


def test_keep_and_models_without_a_cache_stay_as_they_are():
    _, result = quantized(Block(), "keep")
    assert result.rewritten == 0
    _, result = quantized(Block(cache="none"), "int8")
    assert (result.rewritten, result.refusals) == (0, ())


@pytest.mark.parametrize("cache", ["packed", "static"])
@pytest.mark.parametrize("cache_type", CODES)
def test_it_is_verified_with_rows_in_floats_and_the_drift_is_told(cache, cache_type):
    block = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=48)
    report = mla_opt.optimize(build(block), cache=cache, cache_type=cache_type).report
    verification = report.verification
    assert verification["passed"]
    assert all(output["tolerance"] <= 2e-4 for output in verification["outputs"])
    applicable = [each for each in verification["controls"] if each["applicable"]]
    assert applicable
    assert all(each["detected"] for each in applicable)
    drift = verification["drift"]
    assert drift["limit"] == {"int8": 0.5, "fp8": 1.0}[cache_type]
    measured = [each["optimized"] for each in drift["outputs"]]
    measured = [each for each in measured if each is not None]
    assert all(1e-4 < each < drift["limit"] / 5 for each in measured)
    (site,) = report.sites
    assert site.cache_bytes_per_token_after == row_bytes(64, 8)


@pytest.mark.parametrize("cache_type", CODES)
def test_operators_written_out_are_verified_as_they_are(cache_type):
    block = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=48)
    report = mla_opt.optimize(
        build(block), cache="packed", cache_type=cache_type, target="portable"
    ).report
    assert report.verification["passed"]
    assert report.verification["drift"] is None
