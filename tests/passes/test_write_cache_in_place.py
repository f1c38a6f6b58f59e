from __future__ import annotations

import numpy as np
import pytest

from mla_opt.errors import InputError, PassError
from mla_opt.passes.compress_cache import CompressCache
from mla_opt.passes.write_cache_in_place import WriteCacheInPlace
from tests.graphs.latent_block import Block, build, feeds
from tests.labels import label
from tests.passes.harness import (
    assert_close,
    assert_generates_same,
    compute,
    generate,
    prepared,
    run,
)

BEFORE = (CompressCache("static"), "absorb_weights", "release_shapes", "fuse_cache_append")


def written(block: Block, capacity: int | None = None, absorb: str = "factored"):
    graph = prepared(block, *BEFORE, absorb=absorb, prefill="absorbed")
    (result,) = run(graph, WriteCacheInPlace(capacity))
    return graph, result


def operators(graph):
    run(graph, "clean_up")
    return [node for node in graph.model.graph if node.domain == "mla_opt"]


@pytest.mark.parametrize(("capacity", "rows"), [(None, "capacity"), (64, "64")])
def test_caches_become_buffers(capacity, rows):
    graph, result = written(Block(), capacity)
    assert (result.matched, result.rewritten) == (1, 1)
    ends = [*graph.model.graph.inputs, *graph.model.graph.outputs]
    shapes = {each.name: str(each.shape) for each in ends}
    assert shapes["past.0.latent"] == f"[B,1,{rows},16]"
    assert shapes["present.0.latent"] == f"[B,1,{rows},16]"
    assert shapes["past_len"] == "[B]"
    assert graph.model.graph.inputs[-1].name == "past_len"
    assert graph.model.graph.inputs[-1].dtype.numpy() == np.int32


def test_the_operator_is_told_the_lengths():
    graph, _ = written(Block())
    (node,) = operators(graph)
    assert [value.name for value in node.inputs[2:4]] == ["past.0.latent", "past_len"]
    assert len(node.outputs) == 2


def test_layers_share_lengths_and_widened_masks():
    graph, result = written(Block(layers=2))
    assert result.rewritten == 2
    nodes = operators(graph)
    assert len({node.inputs[3] for node in nodes}) == 1
    assert len({node.inputs[4] for node in nodes}) == 1


def test_layers_that_share_a_cache_write_once():
    graph, _ = written(Block(layers=2, share=True))
    first, second = operators(graph)
    assert (first.inputs[2].name, second.inputs[2].name) == ("past.0.latent", "present.0.latent")
    assert second.inputs[1] is None


NUMBERS = [
    {},
    {"bias": None},
    {"bias": "boolean"},
    {"bias": "both", "sink": True},
    {"bias": "computed"},
    {"bias": "computed", "mask_from": "cache"},
    {"core": "fused", "opset": 23},
    {"rope": 0},
    {"cache": "expanded"},
    {"layers": 2, "share": True},
    {"layers": 2, "order": (*range(4, 12), *range(4))},
]


@pytest.mark.parametrize("options", NUMBERS, ids=label)
def test_numbers_call_by_call(options):
    block = Block(**options)
    graph, _ = written(block)
    assert_generates_same(block, graph.model)


def test_numbers_of_a_fixed_capacity():
    graph, _ = written(Block(), 16)
    assert_generates_same(Block(), graph.model)


@pytest.mark.parametrize("absorb", ["fold-q", "fold"])
def test_numbers_of_folded_weights(absorb):
    block = Block()
    graph, _ = written(block, absorb=absorb)
    assert_generates_same(block, graph.model)


def test_half_precision():
    block = Block(dtype="float16")
    graph, _ = written(block)
    assert_generates_same(block, graph.model, tolerance=2e-2)


def flat_mask(tape, scores):
    """One mask `[S, T]` for all sequences."""
    mask = tape.input("attention_mask", ("B", 1, "S", "T"))
    first = tape("Slice", mask, tape.ints(0), tape.ints(1), tape.ints(0))
    return tape("Add", scores, tape("Squeeze", first, tape.ints(0, 1)))


def uniform_mask(tape, scores):
    """One column, the same for every key: nothing to widen."""
    mask = tape.input("attention_mask", ("B", 1, "S", "T"))
    return tape("Add", scores, tape("ReduceMax", mask, tape.ints(-1), keepdims=1))


@pytest.mark.parametrize("edit", [flat_mask, uniform_mask])
def test_masks_of_other_shapes(edit):
    block = Block(bias=None, edits={"masked": edit})
    graph, _ = written(block)
    assert_generates_same(block, graph.model)


def test_rows_that_are_not_valid_do_not_count():
    block = Block(bias=None)
    graph, _ = written(block)
    given = feeds(block, 2, 4, 3)
    seen = []
    for rubbish in (0.0, 1e3):
        buffer = np.full((2, 1, 16, 16), rubbish, np.float32)
        buffer[:, :, :3, :12], buffer[:, :, :3, 12:] = given["past.0.keys"], given["past.0.values"]
        static = given | {"past.0.latent": buffer, "past_len": np.full(2, 3, np.int32)}
        seen.append(compute(graph.model, static)["hidden"])
    np.testing.assert_array_equal(*seen)
    assert_close(seen[0], compute(build(block), given)["hidden"], 1e-5)


def test_the_buffer_keeps_its_other_rows():
    block = Block()
    graph, _ = written(block)
    given = feeds(block, 1, 2, 3)
    buffer = np.arange(10 * 16, dtype=np.float32).reshape(1, 1, 10, 16) / 100
    static = given | {"past.0.latent": buffer, "past_len": np.full(1, 3, np.int32)}
    made = compute(graph.model, static)["present.0.latent"]
    np.testing.assert_array_equal(made[:, :, :3], buffer[:, :, :3])
    np.testing.assert_array_equal(made[:, :, 5:], buffer[:, :, 5:])
    assert abs(made[:, :, 3:5] - buffer[:, :, 3:5]).max() > 0.01


def test_the_last_row_of_a_buffer_can_be_written():
    block = Block()
    graph, _ = written(block)
    expected = generate(build(block), block, (5, 1, 3))
    for seen, wanted in zip(generate(graph.model, block, (5, 1, 3), rows=9), expected):
        assert_close(seen, wanted, 1e-5)


@pytest.mark.parametrize("options", [{"cache": "packed"}, {"row_rank": 3}], ids=str)
def test_latent_caches_of_other_axes_become_buffers_too(options):
    block = Block(**options)
    graph, result = written(block)
    assert result.rewritten == 1
    expected = generate(build(block), block, (5, 1, 3))
    for seen, wanted in zip(generate(graph.model, block, (5, 1, 3), rows=9), expected):
        assert_close(seen, wanted, 1e-5)


def test_what_has_no_cache_of_its_own_is_left():
    graph, result = written(Block(cache="none"))
    assert result.rewritten == 0
    assert "past_len" not in [value.name for value in graph.model.graph.inputs]


def test_an_input_of_the_same_name_is_in_the_way():
    def named(tape, value):
        tape.input("past_len", ("B",))
        return value

    with pytest.raises(InputError, match="an input called 'past_len' already"):
        written(Block(edits={"query": named}))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((CompressCache("static"), "absorb_weights"), "does not append to its cache"),
        ((CompressCache("keep"), *BEFORE[1:]), "keeps its cache in two tensors; pack it first"),
    ],
)
def test_what_must_be_done_before(steps, message):
    graph = prepared(Block(), *steps, prefill="absorbed")
    with pytest.raises(PassError, match=message):
        run(graph, "write_cache_in_place")


def test_sites_with_a_prefill_branch_are_not_written_in_place():
    graph = prepared(Block(), *BEFORE, prefill="auto")
    with pytest.raises(PassError, match="does not append to its cache in one operator"):
        run(graph, "write_cache_in_place")
