from __future__ import annotations

import onnx_ir as ir
import pytest

from mla_opt.errors import PassError
from mla_opt.passes.compress_cache import CompressCache
from tests.graphs.latent_block import Block, feeds
from tests.labels import label
from tests.passes.harness import (
    assert_generates_same,
    assert_same,
    check,
    compute,
    kinds,
    lines,
    prepared,
    run,
)

#: C (N + V) / (2 C - N - V) of the default block, rounded up.
LIMIT = 17


def branched(block: Block, *, prefill: str = "auto", mode: str = "keep", absorb: str = "factored"):
    steps = (CompressCache(mode), "absorb_weights", "release_shapes", "fuse_cache_append")
    graph = prepared(block, *steps, absorb=absorb, prefill=prefill)
    (result,) = run(graph, "add_prefill_branch")
    return graph, result


def conditionals(graph) -> list[ir.Node]:
    return [node for node in graph.model.graph if node.op_type == "If"]


def branch(node: ir.Node, name: str) -> list[str]:
    return [each.op_type for each in node.attributes[f"{name}_branch"].as_graph()]


def test_both_forms_side_by_side():
    graph, result = branched(Block())
    assert (result.matched, result.rewritten) == (1, 1)
    (node,) = conditionals(graph)
    assert branch(node, "then").count("Softmax") == 1
    assert "LatentAttention" not in branch(node, "then")
    assert branch(node, "else").count("LatentAttention") == 1
    assert "Softmax" not in branch(node, "else")
    names = [value.name for value in node.outputs]
    assert names == ["context_0", "present.0.keys", "present.0.values"]


def test_the_operator_outside_of_the_branches_is_gone():
    graph, _ = branched(Block())
    run(graph, "clean_up")
    assert kinds(graph.model)["LatentAttention"] == 0
    assert kinds(graph.model)["Softmax"] == 0


def test_both_branches_read_the_same_matrices():
    graph, _ = branched(Block())
    (node,) = conditionals(graph)
    for name in ("then", "else"):
        inside = node.attributes[f"{name}_branch"].as_graph()
        assert not inside.initializers
        read = {value.name for each in inside for value in each.inputs if value is not None}
        assert {"layers.0.self_attn/mla/w_uk", "layers.0.self_attn/mla/w_uv"} <= read


def test_what_is_made_inside_a_branch_stays_there():
    graph, _ = branched(Block(layers=2))
    inside = [
        {value for each in node.attributes[f"{name}_branch"].as_graph() for value in each.outputs}
        for node in conditionals(graph)
        for name in ("then", "else")
    ]
    for values in inside:
        for value in values:
            readers = {use.node for use in value.uses()}
            assert all(any(out in values for out in reader.outputs) for reader in readers)
    everything = [value for values in inside for value in values]
    assert len({value.name for value in everything}) == len(everything)


def test_layers_share_one_condition():
    graph, _ = branched(Block(layers=2))
    conditions = {node.inputs[0] for node in conditionals(graph)}
    assert len(conditionals(graph)) == 2
    assert len(conditions) == 1


def test_a_branch_from_the_second_query_on():
    graph, _ = branched(Block(), prefill="expanded")
    (node,) = conditionals(graph)
    condition = node.inputs[0].producer()
    assert condition.op_type == "Greater"
    assert condition.inputs[1].const_value.numpy().tolist() == [1]


@pytest.mark.parametrize(
    ("prefill", "absorb"), [("absorbed", "factored"), ("auto", "fold"), ("auto", "none")]
)
def test_sites_that_ask_for_no_branch_have_none(prefill, absorb):
    graph, result = branched(Block(), prefill=prefill, absorb=absorb)
    before = lines(graph.model)
    run(graph, "add_prefill_branch")
    assert result.rewritten == 0
    assert lines(graph.model) == before
    assert conditionals(graph) == []


def test_without_a_cache_the_expanded_form_serves_every_length():
    graph, result = branched(Block(cache="none"))
    assert result.rewritten == 1
    run(graph, "clean_up")
    counts = kinds(graph.model)
    assert (counts["If"], counts["LatentAttention"], counts["Softmax"]) == (0, 0, 1)
    (site,) = graph.sites
    assert (site.form, site.prefill, site.query_value) == ("none", "expanded", None)
    assert "no cache" in site.form_reason


@pytest.mark.parametrize("options", [{"cache": "packed"}, {"row_rank": 3}])
def test_a_cache_of_another_form_is_still_a_cache(options):
    graph, _ = branched(Block(**options))
    assert len(conditionals(graph)) == 1


def test_the_condition_is_the_crossover():
    """Absorbed up to `s T / (T + s)` new tokens, expanded from the next one on."""
    block = Block()
    graph, _ = branched(block)
    (node,) = conditionals(graph)
    condition = node.inputs[0]
    condition.shape, condition.name = ir.Shape([1]), "is_prefill"
    graph.model.graph.outputs.append(condition)
    proto = check(graph.model)
    for total in (LIMIT, 200):
        last = int(LIMIT * total / (total + LIMIT))
        for query, expected in ((1, False), (last, False), (last + 1, True), (LIMIT, True)):
            seen = compute(proto, feeds(block, 1, query, total - query))["is_prefill"]
            assert seen.tolist() == [expected], (query, total)


NUMBERS = [
    {},
    {"bias": "boolean", "sink": True},
    {"bias": "both", "value_bias": True},
    {"bias": None},
    {"rope": 0},
    {"order": (*range(4, 12), *range(4))},
    {"core": "fused", "opset": 23, "bias": None, "causal": True, "cache": "none"},
    {"cache": "none", "bias": "blocked"},
    {"row_rank": 3},
    {"opset": 17, "guarded": True},
]


@pytest.mark.parametrize("options", NUMBERS, ids=label)
def test_numbers_on_both_sides(options):
    block = Block(**options)
    graph, _ = branched(block)
    assert_same(block, graph.model, sizes=((2, 1, 9), (1, 30, 5)))


@pytest.mark.parametrize(
    ("options", "prefill"),
    [({}, "expanded"), ({"cache": "expanded"}, "expanded"), ({"layers": 2, "share": True}, "auto")],
    ids=label,
)
def test_numbers_call_by_call(options, prefill):
    block = Block(**options)
    graph, _ = branched(block, prefill=prefill, mode="packed")
    assert_generates_same(block, graph.model)


def test_half_precision():
    block = Block(dtype="float16", sink=True, bias="boolean")
    graph, _ = branched(block)
    assert_same(block, graph.model, sizes=((2, 1, 9), (1, 30, 5)), tolerance=1e-2)


def test_queries_that_see_nothing_give_zeros_in_both_forms():
    block = Block(bias="boolean")
    graph, _ = branched(block)
    for query in (4, 30):
        seen = compute(graph.model, feeds(block, 2, query, 5, blind=2))["hidden"]
        assert not seen[0, :2].any()
        assert seen[0, 2:].any(axis=-1).all()


def test_needs_sites_that_are_rebuilt():
    graph = prepared(Block(), "compress_cache")
    with pytest.raises(PassError, match="run absorb_weights first"):
        run(graph, "add_prefill_branch")
