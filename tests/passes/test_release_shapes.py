from __future__ import annotations

import pytest

from tests.graphs.latent_block import Block
from tests.labels import label
from tests.passes.harness import assert_same, changed, graph_of, kinds, lines, prepared, run, tree

BEFORE = ("compress_cache", "absorb_weights")


def shapes_read(graph) -> list[str]:
    """Whose shapes are read, and not in vain."""
    readers = [node for node in graph.model.graph if node.op_type == "Shape"]
    return [node.inputs[0].name for node in readers if node.outputs[0].uses()]


@pytest.mark.parametrize("source", ["keys", "scores", "cache"])
def test_a_number_of_keys_is_counted_by_the_inputs(source):
    block = Block(bias="computed", mask_from=source)
    graph = prepared(block, *BEFORE)
    (result,) = run(graph, "release_shapes")
    assert (result.matched, result.rewritten, result.notes) == (1, 1, ())
    (place,) = (node for node in graph.model.graph if node.op_type == "Squeeze")
    total = place.inputs[0].name
    known = {"past.0.keys", "past.0.values", "inputs_embeds", "position_ids"}
    assert set(shapes_read(graph)) <= known
    assert tree(graph.model, total).startswith("Add(Shape(")


@pytest.mark.parametrize("source", ["keys", "scores", "cache"])
def test_the_keys_are_no_longer_made(source):
    graph = prepared(Block(bias="computed", mask_from=source), *BEFORE, "release_shapes")
    run(graph, "clean_up")
    assert kinds(graph.model)["Expand"] == 0
    assert "model.layers.0.self_attn.kv_b_proj.weight" not in graph.model.graph.initializers


def test_without_it_the_keys_would_still_be_made():
    graph = prepared(Block(bias="computed"), *BEFORE, "clean_up")
    assert kinds(graph.model)["Expand"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_from": "scores", "keys": "scatter"},
        {"mask_from": "cache"},
        {"mask_from": "scores", "layers": 2},
        {"query_len": 1},
        {"mask_from": "cache", "query_len": 1},
        {"batch": 2},
        {"past_len": 8},
        {"past_len": 8, "mask_from": "cache"},
    ],
    ids=label,
)
def test_numbers_and_no_cycle_when_the_operator_appends(options):
    block = Block(bias="computed", **options)
    graph = prepared(block, *BEFORE)
    (result,) = run(graph, "release_shapes")
    assert result.rewritten == result.matched
    run(graph, "fuse_cache_append", "clean_up")
    sizes = [(2, 4, 3), (2, 7, 0)]
    if "query_len" in options:
        sizes = [(2, 1, 3), (2, 1, 8)]
    if "past_len" in options:
        sizes = [(2, 4, 8)]
    assert_same(block, graph.model, sizes=sizes)


def test_several_axes_and_whole_shapes():
    """A Shape without bounds: batch and tokens from inputs, fixed sizes as numbers."""

    def whole(tape, scores):
        shape = tape("Shape", tape.nodes[-1].input[0])
        return tape("Add", scores, tape("ConstantOfShape", shape))

    block = Block(edits={"scores": whole}, bias=None)
    graph = prepared(block, *BEFORE)
    (result,) = run(graph, "release_shapes")
    assert result.rewritten == result.matched > 0
    run(graph, "clean_up")
    assert_same(block, graph.model, sizes=((2, 4, 3), (1, 5, 0)))


def test_shapes_of_what_is_alive_are_left():
    block = Block(bias="computed")
    graph = prepared(block)
    before = lines(graph.model)
    (result,) = run(graph, "release_shapes")
    live = [name for name in shapes_read(graph) if name == "key_0"]
    assert live
    assert (result.matched, result.rewritten) == (0, 0)
    assert changed(before, lines(graph.model)) == ([], [])


def test_a_model_without_shapes_is_left():
    graph = prepared(Block(), *BEFORE)
    before = lines(graph.model)
    (result,) = run(graph, "release_shapes")
    assert result.matched == 0
    assert lines(graph.model) == before


def test_a_size_that_nothing_alive_has_is_told_of():
    """The number of keys that a mask leaves depends on data: no input has that size."""

    def odd(tape, scores):
        keep = tape.input("keep", ("S",), 9)
        kept = tape("Compress", tape.nodes[-1].input[0], keep, axis=3)
        shape = tape("Shape", kept, start=3, end=4)
        fill = tape("ReduceSum", tape("ConstantOfShape", shape), keepdims=1)
        return tape("Add", scores, fill)

    graph = prepared(Block(edits={"scores": odd}, bias=None), *BEFORE)
    before = set(shapes_read(graph))
    (result,) = run(graph, "release_shapes")
    assert (result.matched, result.rewritten) == (1, 0)
    assert result.notes == ("1 shapes still hang on values that nothing else needs",)
    assert before <= set(shapes_read(graph))


def test_twice_changes_nothing_more():
    graph = prepared(Block(bias="computed"), *BEFORE, "release_shapes")
    before = lines(graph.model)
    (result,) = run(graph, "release_shapes")
    assert result.rewritten == 0
    assert lines(graph.model) == before


def test_what_others_compute_only_for_its_shape_is_not_touched():
    """A dead value that no attention made."""

    def counted(tape, rows):
        wasted = tape("Tanh", tape("MatMul", rows, tape.weight("wasted", 12, 5)))
        size = tape("Cast", tape("Shape", wasted, start=2, end=3), to=1)
        return tape("Mul", rows, size)

    block = Block(bias="computed", edits={"c_kv": counted})
    graph = prepared(block, *BEFORE)
    (result,) = run(graph, "release_shapes")
    assert (result.matched, result.rewritten) == (1, 1)
    run(graph, "clean_up")
    assert any(name.startswith("tanh") for name in shapes_read(graph))


def test_a_model_without_a_site_is_left():
    graph = graph_of(Block(bias="computed"))
    before = lines(graph.model)
    (result,) = run(graph, "release_shapes")
    assert result.matched == 0
    assert lines(graph.model) == before
