from __future__ import annotations

import pytest

from mla_opt.emission.whole_rows import packed_name
from mla_opt.errors import PassError
from mla_opt.passes.compress_cache import CompressCache
from tests.graphs.latent_block import Block, build
from tests.labels import label
from tests.passes.harness import (
    FIND,
    assert_generates_same,
    graph_of,
    lines,
    prepared,
    run,
    tree,
)

PACKED = CompressCache("packed")
REVERSED = tuple(reversed(range(12)))


def interface(model) -> dict[str, str]:
    return {each.name: str(each.shape) for each in (*model.graph.inputs, *model.graph.outputs)}


def test_a_latent_cache_is_kept_as_it_is():
    block = Block()
    graph = prepared(block)
    (result,) = run(graph, "compress_cache")
    assert lines(graph.model) == lines(build(block))
    assert (result.matched, result.rewritten) == (1, 0)


def test_expanded_rows_make_way_for_latent_ones():
    graph = prepared(Block(cache="expanded"))
    (result,) = run(graph, "compress_cache")
    assert (result.matched, result.rewritten) == (1, 1)
    shapes = interface(graph.model)
    assert shapes["past.0.keys"] == "[B,1,P,12]"
    assert shapes["past.0.values"] == "[B,1,P,4]"
    assert shapes["present.0.keys"] == "[B,1,T,12]"
    assert shapes["present.0.values"] == "[B,1,T,4]"
    assert tree(graph.model, "present.0.keys") == "Concat(past.0.keys, c_kv_0)"
    assert tree(graph.model, "present.0.values") == "Concat(past.0.values, k_pe_0)"
    (site,) = graph.sites
    assert (site.expanded, site.cache.layout) == (None, "split")
    assert (site.family, site.layout_before) == ("expanded", "expanded")


def test_keys_are_made_anew_from_the_latent_rows():
    graph = prepared(Block(cache="expanded"))
    run(graph, "compress_cache")
    (site,) = graph.sites
    key = graph.producer(site.core.first.inputs[1]).inputs[0]
    assert tree(graph.model, key.name) == (
        "Transpose(Concat(MatMul(w_uk, Transpose(Concat(past.0.keys, c_kv_0))), "
        "Expand(Transpose(Concat(past.0.values, k_pe_0)), 1_3_1_1)))"
    )


def test_without_rotary_part_one_cache_is_left():
    graph = prepared(Block(cache="expanded", rope=0))
    run(graph, "compress_cache")
    shapes = interface(graph.model)
    assert shapes["past.0.keys"] == "[B,1,P,12]"
    assert "past.0.values" not in shapes
    assert "present.0.values" not in shapes


@pytest.mark.parametrize("cache", ["latent", "expanded"])
def test_packed_is_one_tensor_a_layer(cache):
    graph = prepared(Block(cache=cache, layers=2))
    run(graph, PACKED)
    shapes = interface(graph.model)
    caches = {name: shape for name, shape in shapes.items() if name.startswith(("past", "present"))}
    assert caches == {
        "past.0.latent": "[B,1,P,16]",
        "past.1.latent": "[B,1,P,16]",
        "present.0.latent": "[B,1,T,16]",
        "present.1.latent": "[B,1,T,16]",
    }
    assert tree(graph.model, "present.1.latent") == "Concat(past.1.latent, Concat(c_kv_1, k_pe_1))"
    assert [site.cache.layout for site in graph.sites] == ["packed", "packed"]


def test_inputs_and_outputs_keep_their_places():
    graph = prepared(Block(layers=2))
    run(graph, PACKED)
    inputs = [each.name for each in graph.model.graph.inputs]
    assert inputs == [
        "inputs_embeds",
        "position_ids",
        "past.0.latent",
        "attention_mask",
        "past.1.latent",
    ]
    outputs = [each.name for each in graph.model.graph.outputs]
    assert outputs == ["present.0.latent", "present.1.latent", "hidden"]


def test_layers_that_share_a_cache_share_the_packed_one():
    graph = prepared(Block(layers=2, share=True))
    (result,) = run(graph, PACKED)
    assert result.rewritten == 2
    first, second = graph.sites
    assert first.cache is second.cache
    assert first.latent is second.latent


@pytest.mark.parametrize(
    ("options", "notes"),
    [({"cache": "none"}, ()), ({"cache": "packed"}, ("1 cache is packed already",))],
)
def test_without_a_cache_or_with_a_packed_one_there_is_nothing_to_do(options, notes):
    block = Block(**options)
    graph = prepared(block)
    (result,) = run(graph, PACKED)
    assert lines(graph.model) == lines(build(block))
    assert (result.rewritten, result.refusals, result.notes) == (0, (), notes)


def test_rows_of_three_axes_are_packed_as_all_others():
    graph = prepared(Block(row_rank=3))
    (result,) = run(graph, PACKED)
    assert (result.rewritten, result.refusals) == (1, ())
    shapes = interface(graph.model)
    assert shapes["past.0.latent"] == "[B,1,P,16]"
    assert shapes["present.0.latent"] == "[B,1,T,16]"


def halved(tape, key):
    return tape("Mul", key, tape.scalar(0.5))


NUMBERS = [
    ("keep", {"cache": "expanded"}),
    ("keep", {"cache": "expanded", "rope": 0}),
    ("keep", {"cache": "expanded", "keys": "scatter"}),
    ("keep", {"cache": "expanded", "order": REVERSED}),
    ("keep", {"cache": "expanded", "edits": {"key": halved}}),
    ("keep", {"cache": "expanded", "value_bias": True, "row_rank": 3}),
    ("keep", {"cache": "expanded", "core": "fused", "opset": 23}),
    ("packed", {}),
    ("packed", {"rope": 0}),
    ("packed", {"row_rank": 3}),
    ("static", {"row_rank": 3, "layers": 2, "share": True}),
    ("packed", {"cache": "expanded", "bias": "computed", "mask_from": "scores"}),
    ("packed", {"layers": 2, "share": True}),
    ("packed", {"layers": 2, "cache_names": ("_key_{0}", "_value_{0}")}),
    ("static", {"cache": "expanded"}),
]


@pytest.mark.parametrize(("mode", "options"), NUMBERS, ids=label)
def test_numbers_call_by_call(mode, options):
    block = Block(**options)
    graph = prepared(block)
    run(graph, CompressCache(mode))
    assert_generates_same(block, graph.model)


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("past.0.keys", "past.0.values", "past.0.latent"),
        ("past_key_values.3.key", "past_key_values.3.value", "past_key_values.3.latent"),
        ("past_key_0", "past_value_0", "past_latent_0"),
        ("cache/k", "cache/v", "cache/latent"),
        ("past.c_kv.7", "past.k_pe.7", "past.latent.7"),
    ],
)
def test_packed_names(first, second, name):
    assert packed_name([first, second]) == name


def test_names_of_different_layers_stay_different():
    names = {packed_name([f"past_key_{i}", f"past_value_{i}"]) for i in range(12)}
    assert len(names) == 12


def test_halves_without_a_common_name_are_called_by_the_first():
    assert packed_name(["a", "b"]) == "a_latent"


def test_packing_twice_changes_nothing_more():
    graph = prepared(Block())
    run(graph, PACKED)
    before = lines(graph.model)
    (result,) = run(graph, PACKED)
    assert lines(graph.model) == before
    assert result.rewritten == 0


def test_needs_matrices():
    graph = graph_of(Block())
    run(graph, *FIND)
    with pytest.raises(PassError, match="run extract_weights first"):
        run(graph, "compress_cache")


def test_promises_that_no_expanded_rows_are_cached():
    graph = graph_of(Block(cache="expanded"))
    run(graph, *FIND)
    with pytest.raises(PassError, match="still caches expanded rows"):
        CompressCache().ensures(graph)
