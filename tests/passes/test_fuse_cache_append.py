from __future__ import annotations

import pytest

from mla_opt.errors import PassError
from mla_opt.passes.compress_cache import CompressCache
from tests.graphs.latent_block import Block
from tests.labels import label
from tests.passes.harness import (
    assert_generates_same,
    assert_same,
    kinds,
    lines,
    prepared,
    run,
    tree,
)

BEFORE = ("compress_cache", "absorb_weights", "release_shapes")
QUERY = "Concat(MatMul(q_parts_0.0, w_uk), q_pe_0)"


def fused(block: Block, *, mode: str = "keep", absorb: str = "factored"):
    graph = prepared(block, CompressCache(mode), "absorb_weights", "release_shapes", absorb=absorb)
    (result,) = run(graph, "fuse_cache_append")
    return graph, result


def test_past_and_new_rows_go_in_and_the_longer_cache_comes_out():
    graph, result = fused(Block())
    assert (result.matched, result.rewritten) == (1, 1)
    node = f"({QUERY}, Concat(c_kv_0, k_pe_0), past.0.keys, -, attention_mask, -, past.0.values)"
    assert tree(graph.model, "context_0") == f"MatMul(LatentAttention.0{node}, w_uv)"
    assert tree(graph.model, "present.0.keys") == f"LatentAttention.1{node}"
    assert tree(graph.model, "present.0.values") == f"LatentAttention.2{node}"


def test_a_packed_cache():
    graph, _ = fused(Block(), mode="packed")
    node = f"({QUERY}, Concat(c_kv_0, k_pe_0), past.0.latent, -, attention_mask)"
    assert tree(graph.model, "context_0") == f"MatMul(LatentAttention.0{node}, w_uv)"
    assert tree(graph.model, "present.0.latent") == f"LatentAttention.1{node}"


def test_without_rotary_part():
    graph, _ = fused(Block(rope=0))
    node = "(MatMul(query_0, w_uk), c_kv_0, past.0.keys, -, attention_mask)"
    assert tree(graph.model, "present.0.keys") == f"LatentAttention.1{node}"


def test_the_concats_of_the_cache_are_gone():
    block = Block()
    graph = prepared(block, *BEFORE, "clean_up")
    before = kinds(graph.model)["Concat"]
    graph, _ = fused(block)
    run(graph, "clean_up")
    assert kinds(graph.model)["Concat"] == before - 2


def test_symbols_of_the_outputs_are_kept():
    graph, _ = fused(Block())
    shapes = [str(each.shape) for each in graph.model.graph.outputs]
    assert shapes == ["[B,1,T,12]", "[B,1,T,4]", "[B,S,20]"]


def test_layers_that_share_a_cache_append_once():
    graph, result = fused(Block(layers=2, share=True))
    assert result.rewritten == 2
    nodes = [node for node in graph.model.graph if node.domain == "mla_opt"]
    run(graph, "clean_up")
    nodes = [node for node in graph.model.graph if node.domain == "mla_opt"]
    assert [len(node.outputs) for node in nodes] == [3, 1]
    cache, rope_cache = nodes[1].inputs[2], nodes[1].inputs[6]
    assert (cache.name, rope_cache.name) == ("present.0.keys", "present.0.values")
    assert nodes[1].inputs[1] is None


@pytest.mark.parametrize("options", [{"cache": "none"}, {"row_rank": 3}])
def test_what_has_no_cache_of_its_own_is_left(options):
    graph = prepared(Block(**options), *BEFORE)
    before = lines(graph.model)
    (result,) = run(graph, "fuse_cache_append")
    assert result.rewritten == 0
    assert lines(graph.model) == before


def test_one_tensor_of_both_halves_is_appended_to_as_it_is():
    graph, result = fused(Block(cache="packed"))
    assert result.rewritten == 1
    (joined,) = graph.sites[0].cache.joined
    node = graph.producer(joined)
    assert (node.domain, joined.name) == ("mla_opt", "present.0")
    assert node.inputs[2].name == "past.0"


def test_what_is_not_absorbed_is_left():
    _, result = fused(Block(), absorb="none")
    assert result.rewritten == 0


@pytest.mark.parametrize(
    ("options", "mode", "absorb"),
    [
        ({}, "keep", "fold"),
        ({"sink": True, "bias": "both"}, "packed", "factored"),
        ({"cache": "expanded"}, "keep", "factored"),
        ({"cache": "expanded", "bias": "computed"}, "packed", "fold-q"),
        ({"layers": 2, "share": True}, "keep", "factored"),
        ({"layers": 2, "share": True}, "packed", "fold-o"),
        ({"rope": 0, "bias": "boolean"}, "keep", "factored"),
    ],
    ids=label,
)
def test_numbers_call_by_call(options, mode, absorb):
    block = Block(**options)
    graph, _ = fused(block, mode=mode, absorb=absorb)
    assert_generates_same(block, graph.model)


def test_numbers():
    block = Block()
    graph, _ = fused(block)
    assert_same(block, graph.model, sizes=((2, 4, 3), (1, 5, 0)))


def test_needs_sites_that_are_rebuilt():
    graph = prepared(Block(), "compress_cache")
    with pytest.raises(PassError, match="run absorb_weights first"):
        run(graph, "fuse_cache_append")
