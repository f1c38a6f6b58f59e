from __future__ import annotations

import onnx_ir as ir

from mla_opt.passes.find_latent_attention import FindLatentAttention
from tests.graphs.latent_block import Block
from tests.passes.harness import graph_of, lines, run, value


def found(block: Block, **options: object):
    graph = graph_of(block)
    before = lines(graph.model)
    (result,) = run(graph, FindLatentAttention(**options))
    assert lines(graph.model) == before
    return graph, result


def names(values) -> tuple[str | None, ...]:
    return tuple(value.name for value in values)


def test_one_site_a_layer_in_order():
    graph, result = found(Block(layers=3))
    assert (result.matched, result.rewritten, result.refusals) == (3, 0, ())
    assert [site.name for site in graph.sites] == [f"layers.{i}.self_attn" for i in range(3)]


def test_a_site_knows_its_rows_and_their_cache():
    graph, _ = found(Block())
    (site,) = graph.sites
    assert (site.family, site.layout_before) == ("latent", "split")
    assert names((site.latent, site.rope)) == ("present.0.keys", "present.0.values")
    assert site.cache.layout == "split"
    assert names(site.cache.past) == ("past.0.keys", "past.0.values")
    assert names(site.cache.new) == ("c_kv_0", "k_pe_0")
    assert names(site.cache.joined) == ("present.0.keys", "present.0.values")
    assert site.original_cache.inputs == ("past.0.keys", "past.0.values")
    assert site.original_cache.outputs == ("present.0.keys", "present.0.values")


def test_a_cache_of_expanded_rows_is_told_from_one_of_latent_rows():
    graph, _ = found(Block(cache="expanded"))
    (site,) = graph.sites
    assert (site.family, site.layout_before) == ("expanded", "expanded")
    assert site.cache is None
    assert names(part.past for part in site.expanded) == ("past.0.keys", "past.0.values")
    assert names((site.latent, site.rope)) == ("c_kv_0", "k_pe_0")
    assert site.original_cache.outputs == ("present.0.keys", "present.0.values")


def test_without_a_cache_there_is_none():
    graph, _ = found(Block(cache="none"))
    (site,) = graph.sites
    assert (site.family, site.cache, site.original_cache) == ("none", None, None)
    assert site.held == ()


def test_one_tensor_of_both_halves_is_a_packed_cache():
    graph, _ = found(Block(cache="packed"))
    (site,) = graph.sites
    assert (site.family, site.layout_before, site.cache.layout) == ("latent", "packed", "packed")
    assert [each.places for each in site.held] == [tuple(range(16))]


def test_a_cache_of_other_axes_is_known_but_none_that_the_operator_appends_to():
    graph, _ = found(Block(row_rank=3))
    (site,) = graph.sites
    assert (site.family, site.layout_before, site.cache) == ("latent", "split", None)
    assert [[part.role for axis in each.layout for part in axis] for each in site.held] == [
        ["batch", "key", "width"],
        ["batch", "key", "width"],
    ]
    assert [len(each.places) for each in site.held] == [12, 4]
    assert site.original_cache.inputs == ("past.0.keys", "past.0.values")


def test_without_rotary_part_there_is_one_half():
    graph, _ = found(Block(rope=0))
    (site,) = graph.sites
    assert site.rope is None
    assert names(site.cache.past) == ("past.0.keys",)


def test_layers_may_share_their_rows():
    graph, _ = found(Block(layers=2, share=True))
    first, second = graph.sites
    assert names((second.latent, second.rope)) == names((first.latent, first.rope))
    assert second.cache.joined == first.cache.joined
    assert second.core.output is not first.core.output


def test_excluded_sites_are_left_out():
    graph, result = found(Block(layers=3), exclude=frozenset({"layers.1.self_attn"}))
    assert [site.name for site in graph.sites] == ["layers.0.self_attn", "layers.2.self_attn"]
    assert result.matched == 2


def test_refusals_and_sites_of_one_graph():
    def second_layer_only(tape, value):
        return tape("Tanh", value) if tape.layer == 1 else value

    graph, result = found(Block(layers=3, edits={"value": second_layer_only}))
    assert [site.name for site in graph.sites] == ["layers.0.self_attn", "layers.2.self_attn"]
    assert [(each.site, each.code) for each in result.refusals] == [
        ("layers.1.self_attn", "not_linear")
    ]


def test_names_come_from_stored_tensors_or_else_are_numbers():
    block = Block(layers=2)
    graph = graph_of(block)
    for number, stored in enumerate(list(graph.model.graph.initializers.values())):
        stored.name = f"w{number}"
    run(graph, "find_latent_attention")
    assert [site.name for site in graph.sites] == ["attention.0", "attention.1"]


def test_equal_names_are_told_apart():
    graph = graph_of(Block(layers=2))
    for name, stored in list(graph.model.graph.initializers.items()):
        if "layers.1" in name:
            stored.name = name.replace("layers.1", "layers.0") + "_again"
    run(graph, "find_latent_attention")
    assert [site.name for site in graph.sites] == ["layers.0.self_attn", "layers.0.self_attn#2"]


def test_a_graph_without_attention_has_neither_sites_nor_refusals():
    graph, result = found(Block(layers=0))
    assert (graph.sites, result.matched, result.refusals) == ([], 0, ())


def test_inputs_that_contradict_each_other_are_a_refusal_and_no_failure():
    graph = graph_of(Block(layers=2))
    value(graph.model, "inputs_embeds").shape = ir.Shape(["B", 4, 20])
    value(graph.model, "position_ids").shape = ir.Shape(["B", 9])
    result = FindLatentAttention().run(graph)
    assert graph.sites == []
    assert len(result.refusals) == 2
    assert {each.code for each in result.refusals} <= {"inputs_not_understood", "unknown_shape"}


def test_an_input_without_a_shape_is_a_refusal_and_no_failure():
    graph = graph_of(Block(layers=2))
    value(graph.model, "past.0.keys").shape = None
    result = FindLatentAttention().run(graph)
    assert graph.sites == []
    assert len(result.refusals) == 2


def test_sizes_of_unrelated_inputs_do_not_matter():
    def sized(tape, query):
        tape.input("images", ("N", 5))
        return query

    graph, result = found(Block(edits={"query": sized}))
    assert (len(graph.sites), result.refusals) == (1, ())
