from __future__ import annotations

import onnx_ir as ir
import pytest

from mla_opt.errors import InputError, PassError
from mla_opt.passes.compress_cache import CompressCache
from mla_opt.passes.narrow_cache import NarrowCache
from tests.graphs.latent_block import Block
from tests.passes.harness import assert_close, assert_generates_same, generate, prepared, run

APPENDED = ("absorb_weights", "release_shapes", "fuse_cache_append")
TOLERANCE = {"float16": 3e-3, "bfloat16": 3e-2}


def narrowed(block: Block, cache_type: str, mode: str = "keep", prefill: str = "absorbed"):
    graph = prepared(block, CompressCache(mode), *APPENDED, prefill=prefill)
    (result,) = run(graph, NarrowCache(cache_type))
    return graph, result


def types(graph) -> dict[str, str]:
    ends = [*graph.model.graph.inputs, *graph.model.graph.outputs]
    return {end.name: end.dtype.name for end in ends}


@pytest.mark.parametrize("cache_type", ["float16", "bfloat16"])
def test_only_the_cache_changes_its_type(cache_type):
    before = types(prepared(Block(), CompressCache("keep"), *APPENDED, prefill="absorbed"))
    graph, result = narrowed(Block(), cache_type)
    assert (result.matched, result.rewritten) == (1, 1)
    after = types(graph)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {name for name in before if name.startswith(("past", "present"))}
    assert {after[name] for name in changed} == {cache_type.upper()}


@pytest.mark.parametrize("mode", ["keep", "packed"])
@pytest.mark.parametrize("cache_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("layers", [1, 2])
def test_it_generates_the_same_but_for_the_rounding(mode, cache_type, layers):
    block = Block(layers=layers)
    graph, _ = narrowed(block, cache_type, mode)
    run(graph, "clean_up")
    assert_generates_same(block, graph.model, TOLERANCE[cache_type] * layers)
    with pytest.raises(AssertionError):
        assert_generates_same(block, graph.model, 1e-6)


@pytest.mark.parametrize("cache_type", ["float16", "bfloat16"])
def test_both_branches_see_the_rounded_rows(cache_type):
    """What was kept is what is attended to, however long the query is."""
    block = Block()
    absorbed, _ = narrowed(block, cache_type)
    branched, _ = narrowed(block, cache_type, prefill="expanded")
    run(branched, "add_prefill_branch", "clean_up")
    run(absorbed, "clean_up")
    for seen, wanted in zip(generate(branched.model, block), generate(absorbed.model, block)):
        assert_close(seen, wanted, 1e-5, cache_type)


@pytest.mark.parametrize("cache_type", ["float16", "bfloat16"])
def test_buffers_keep_the_type(cache_type):
    block = Block()
    graph, _ = narrowed(block, cache_type, "static")
    run(graph, "write_cache_in_place", "clean_up")
    assert types(graph)["past.0.latent"] == cache_type.upper()
    assert_generates_same(block, graph.model, TOLERANCE[cache_type])


def test_expanded_caches_become_narrow_latent_ones():
    block = Block(cache="expanded")
    graph, _ = narrowed(block, "float16")
    run(graph, "clean_up")
    assert set(types(graph).values()) >= {"FLOAT16", "FLOAT"}
    assert_generates_same(block, graph.model, TOLERANCE["float16"])


def test_a_model_without_a_cache_stays_as_it_is():
    _, result = narrowed(Block(cache="none"), "float16")
    assert (result.rewritten, result.refusals) == (0, ())


def test_a_cache_that_is_not_absorbed_keeps_its_type():
    graph = prepared(Block(), CompressCache("keep"), *APPENDED, absorb="none")
    (result,) = run(graph, NarrowCache("float16"))
    assert result.rewritten == 0
    (refusal,) = result.refusals
    assert (refusal.site, refusal.code) == ("layers.0.self_attn", "cache_type_kept")
    assert "FLOAT16" not in types(graph).values()


def test_keep_changes_nothing():
    graph, result = narrowed(Block(), "keep")
    assert result.rewritten == 0
    assert "FLOAT16" not in types(graph).values()


def test_a_cache_that_has_16_bits_already_is_refused():
    graph = prepared(Block(), CompressCache("keep"), *APPENDED, prefill="absorbed")
    for site in graph.sites:
        for past in site.cache.past:
            past.dtype = ir.DataType.FLOAT16
    with pytest.raises(InputError, match="is float16: only float32 caches can be kept as bfloat"):
        NarrowCache("bfloat16").run(graph)


def test_the_operator_has_to_append_first():
    graph = prepared(Block(), CompressCache("keep"), "absorb_weights", prefill="absorbed")
    with pytest.raises(PassError, match="run fuse_cache_append first"):
        run(graph, NarrowCache("float16"))
