"""Graphs with fixed input shapes: what their shapes are, and running parts of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto

from mla_opt.errors import MlaOptError
from mla_opt.graphs.onnx.binding import OnnxBinding, UnboundValueError
from mla_opt.graphs.onnx.graph import OnnxGraph
from tests.graphs.latent_block import Block, Tape, build, feeds
from tests.labels import label
from tests.passes.harness import compute, graph_of, value


def bound(block: Block, *sizes: int) -> tuple[OnnxGraph, OnnxBinding]:
    graph = graph_of(block)
    return graph, graph.bind(*(sizes or (2, 4, 3)))


def at(graph: OnnxGraph, name: str) -> Any:
    return value(graph.model, name)


@pytest.mark.parametrize("sizes", [(2, 4, 3), (1, 1, 0), (3, 7, 50)])
def test_every_shape_is_a_number(sizes):
    batch, query, past = sizes
    graph, binding = bound(Block(keys="scatter"), *sizes)
    assert binding.sizes == sizes
    assert binding.shape(at(graph, "c_kv_0")) == (batch, 1, query, 12)
    assert binding.shape(at(graph, "present.0.keys")) == (batch, 1, past + query, 12)
    assert binding.shape(at(graph, "context_0")) == (batch, 3, query, 6)
    for node in graph.nodes():
        assert all(binding.shape(each) is not None for each in node.outputs), node


def test_shapes_are_those_of_a_run():
    block = Block(bias="computed", sink=True, keys="scatter")
    graph, binding = bound(block)
    proto = build(block)
    names = [node.output[0] for node in proto.graph.node]
    known = {output.name for output in proto.graph.output}
    proto.graph.output.extend(
        [type(proto.graph.output[0])(name=name) for name in names if name not in known]
    )
    for name, array in compute(proto, feeds(block, 2, 4, 3)).items():
        assert binding.shape(at(graph, name)) == array.shape, name


def test_what_the_file_claims_is_not_believed():
    """Exporters leave the sizes of their example input behind."""
    graph = graph_of(Block())
    for node in graph.model.graph:
        for each in node.outputs:
            if not each.is_graph_output():
                each.shape = ir.Shape([77])
    assert graph.bind(2, 4, 3).shape(at(graph, "c_kv_0")) == (2, 1, 4, 12)


def test_binding_does_not_touch_the_graph():
    graph = graph_of(Block())
    before = graph.text()
    graph.bind(2, 4, 3).shape(at(graph, "c_kv_0"))
    assert graph.text() == before


def test_an_unknown_shape_is_none():
    def data_dependent(tape: Tape, rows: str) -> str:
        keep = tape.input("keep", ("S",), TensorProto.BOOL)
        tape("Compress", rows, keep, name="kept", axis=2)
        return rows

    graph, binding = bound(Block(edits={"c_kv": data_dependent}))
    assert binding.shape(at(graph, "kept")) is None
    assert binding.shape(at(graph, "context_0")) is not None


# Shapes that depend on computed shapes


def chosen(tape: Tape, rows: str) -> str:
    """Exporters of Expand write `where(shape == -1, 1, shape)`: a choice between shapes."""
    wanted = tape.stored(np.array([-1, -1, -1, 12]), "wanted")
    ones = tape("ConstantOfShape", tape.stored(np.array([4]), "rank"), value=_one())
    minus = tape("Mul", ones, tape.stored(np.asarray(-1), "minus_one"))
    same = tape("Equal", wanted, minus)
    target = tape("Where", same, ones, wanted)
    return tape("Expand", rows, target, name="expanded_rows")


def chosen_twice(tape: Tape, rows: str) -> str:
    first = chosen(tape, rows)
    shape = tape("Shape", first)
    equal = tape("Equal", shape, tape.stored(np.array([1, 1, 1, 1]), "ones_4"))
    target = tape("Where", equal, shape, shape)
    return tape("Reshape", first, target, name="reshaped_rows")


def _one() -> Any:
    from onnx import helper

    return helper.make_tensor("one", TensorProto.INT64, [1], [1])


@pytest.mark.parametrize("edit", [chosen, chosen_twice])
def test_shapes_are_followed_through_equal_and_where(edit):
    block = Block(edits={"c_kv": edit})
    graph, binding = bound(block)
    assert binding.shape(at(graph, "expanded_rows")) == (2, 1, 4, 12)
    assert binding.shape(at(graph, "context_0")) == (2, 3, 4, 6)


def test_following_shapes_takes_computing_where_the_library_stops(monkeypatch):
    monkeypatch.setattr(OnnxBinding, "_resolve", lambda self, bound: False)
    graph, binding = bound(Block(edits={"c_kv": chosen}))
    assert binding.shape(at(graph, "expanded_rows")) is None


# Running parts


def test_a_part_is_run_between_what_is_fed_and_what_is_asked_for():
    block = Block(keys="scatter")
    graph, binding = bound(block)
    rng = np.random.default_rng(0)
    latent = rng.standard_normal((2, 1, 7, 12)).astype(np.float32)
    rope = rng.standard_normal((2, 1, 7, 4)).astype(np.float32)
    rows = {at(graph, "present.0.keys"): latent, at(graph, "present.0.values"): rope}
    key = graph.producer(at(graph, "products_0")).inputs[1]
    (made,) = binding.run([key], rows)
    weight = Tape(block).numbers("kv_b_proj.weight", 12, 42).reshape(12, 3, 14)
    expected = np.einsum("bxtc,chn->bhnt", latent, weight[..., :8])
    np.testing.assert_allclose(made[:, :, :8], expected, atol=1e-5)
    np.testing.assert_array_equal(made[:, :, 8:], rope.swapaxes(2, 3).repeat(3, axis=1))


def test_a_part_that_needs_an_input_cannot_be_run():
    graph, binding = bound(Block())
    with pytest.raises(UnboundValueError, match="inputs_embeds is an input that this part must"):
        binding.run([at(graph, "c_kv_0")], {})
    assert issubclass(UnboundValueError, MlaOptError)


def test_a_part_that_only_needs_a_shape_can():
    def counted(tape: Tape, rows: str) -> str:
        sizes = tape("Shape", rows, start=2, end=3)
        tape("Add", sizes, tape.ints(5), name="five_more")
        return rows

    graph, binding = bound(Block(edits={"c_kv": counted}))
    (seen,) = binding.run([at(graph, "five_more")], {})
    assert seen.tolist() == [9]


def test_stored_values_can_be_run_for():
    graph, binding = bound(Block(storage="dequantized"))
    node = next(each for each in graph.nodes() if each.op_type == "DequantizeLinear")
    (matrix,) = binding.run([node.outputs[0]], {})
    assert matrix.shape == (12, 42)


def test_values_that_are_fed_need_no_producer():
    graph, binding = bound(Block())
    hidden = at(graph, "hidden")
    given = np.ones((2, 4, 20), np.float32)
    (seen,) = binding.run([hidden], {hidden: given})
    np.testing.assert_array_equal(seen, given)


def test_a_part_of_an_operator_that_cannot_run_is_an_error_of_ours():
    def custom(tape: Tape, rows: str) -> str:
        return tape("NoSuchOperator", rows, name="odd", domain="test")

    graph = graph_of(Block(edits={"c_kv": custom}))
    binding = graph.bind(2, 4, 3)
    source = graph.producer(at(graph, "odd")).inputs[0]
    with pytest.raises(UnboundValueError, match="ONNX Runtime cannot run it alone"):
        binding.run([at(graph, "odd")], {source: np.ones((2, 1, 4, 12), np.float32)})


def test_a_part_that_fails_while_running_is_an_error_of_ours():
    graph, binding = bound(Block())
    query, key = graph.producer(at(graph, "products_0")).inputs
    wrong = {query: np.ones((2, 3, 4, 12), np.float32), key: np.ones((2, 3, 5, 7), np.float32)}
    with pytest.raises(UnboundValueError):
        binding.run([at(graph, "products_0")], wrong)


def test_equal_parts_share_a_session(monkeypatch):
    from mla_opt.graphs.onnx import parts

    monkeypatch.setattr(parts, "_sessions", {})
    graph, binding = bound(Block(layers=2))
    for layer in range(2):
        rows = at(graph, f"present.{layer}.keys")
        binding.run([at(graph, f"made_{layer}")], {rows: np.ones((2, 1, 7, 12), np.float32)})
    small = len(parts._sessions)
    assert small == 2  # their small weights are part of them

    wide = Block(layers=2, heads=16, latent=16)
    graph, binding = bound(wide)
    parts._sessions.clear()
    for layer in range(2):
        rows = at(graph, f"present.{layer}.keys")
        binding.run([at(graph, f"made_{layer}")], {rows: np.ones((2, 1, 7, 16), np.float32)})
    assert len(parts._sessions) == 1  # large ones are fed


def test_element_types_are_inferred():
    graph, binding = bound(Block(dtype="float16", bias="boolean"))
    assert binding.element_type(at(graph, "context_0")).numpy() == np.float16
    assert binding.element_type(at(graph, "attention_mask_allowed")).numpy() == np.bool_


# The nearest binding


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, (2, 4, 3)),
        ({"batch": 1}, (1, 4, 3)),
        ({"query_len": 1}, (2, 1, 3)),
        ({"batch": 3, "query_len": 4, "past_len": 8}, (3, 4, 8)),
        ({"cache": "none"}, (2, 4, 0)),
    ],
    ids=label,
)
def test_fixed_sizes_win(options, sizes):
    graph = graph_of(Block(**options))
    assert graph.nearest_binding(2, 4, 3).sizes == sizes


def test_bindings_are_kept():
    graph = graph_of(Block())
    assert graph.bind(2, 4, 3) is graph.nearest_binding(2, 4, 3)
    assert graph.bind(2, 4, 3) is not graph.bind(2, 4, 5)
