"""The graph protocol over onnx_ir: reading, constants, replacing, the interface, shape readers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from mla_opt.errors import InputError
from mla_opt.graphs.onnx.graph import SMALL
from tests.graphs.latent_block import Block, build, feeds
from tests.passes.harness import check, compute, graph_of, lines, named_twice, value


def test_producers_and_consumers():
    graph = graph_of(Block())
    rows = value(graph.model, "c_kv_0")
    assert graph.producer(rows).op_type == "Unsqueeze"
    assert [node.op_type for node in graph.consumers(rows)] == ["Concat"]
    assert graph.producer(graph.taken()[0]) is None
    node = graph.producer(rows)
    assert graph.label(node) == f"{node.name} (Unsqueeze)"
    other = ir.node("Odd", [], domain="test", name="odd")
    assert graph.label(other) == "odd (test::Odd)"


def test_positions_are_those_that_the_model_came_with():
    graph = graph_of(Block())
    nodes = graph.nodes()
    assert [graph.position(node) for node in nodes] == list(range(len(nodes)))


def test_absent_operands_are_left_out():
    graph = graph_of(Block())
    node = ir.node("Clip", [graph.taken()[0], None, graph.taken()[1]])
    assert graph.operands(node) == (graph.taken()[0], graph.taken()[1])


# Constants


def test_stored_tensors_are_constants_and_inputs_are_not():
    graph = graph_of(Block())
    weight = value(graph.model, "model.layers.0.self_attn.kv_b_proj.weight")
    assert graph.is_constant(weight)
    assert graph.constant(weight).shape == (12, 42)
    assert not graph.is_constant(graph.taken()[0])
    assert graph.constant(graph.taken()[0]) is None


def test_what_is_computed_of_constants_is_constant():
    graph = graph_of(Block(storage="dequantized"))
    node = next(each for each in graph.nodes() if each.op_type == "DequantizeLinear")
    assert graph.is_constant(node.outputs[0])
    assert graph.constant(node.outputs[0]) is None
    assert not graph.is_constant(value(graph.model, "c_kv_0"))


def test_a_default_that_may_be_overridden_is_no_constant():
    proto = build(Block())
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    info = proto.graph.input.add()
    info.name = name
    info.type.tensor_type.elem_type = 1
    graph = graph_of(proto)
    weight = value(graph.model, name)
    assert not graph.is_constant(weight)
    assert graph.constant(weight) is None
    assert not graph.is_input(weight)


def test_randomness_is_no_constant():
    graph = graph_of(Block())
    node = ir.node("RandomNormal", [], attributes={"shape": [2]})
    assert not graph.is_constant(node.outputs[0])
    like = ir.node("RandomNormalLike", [value(graph.model, "inv_freq")])
    assert not graph.is_constant(like.outputs[0])


def test_large_tensors_are_not_read_while_matching():
    graph = graph_of(Block(heads=32))
    weight = value(graph.model, "model.layers.0.self_attn.kv_b_proj.weight")
    assert weight.const_value.size > SMALL
    assert graph.small_constant(weight) is None
    assert graph.constant(weight) is not None


# Types and shapes


def test_types_that_the_file_does_not_declare_are_inferred_and_noted():
    graph = graph_of(Block(dtype="float16"))
    rows = value(graph.model, "c_kv_0")
    assert rows.dtype is None
    assert graph.dtype(rows) == np.float16
    assert rows.dtype == ir.DataType.FLOAT16


def test_rank_and_width():
    graph = graph_of(Block())
    rows = value(graph.model, "c_kv_0")
    assert (graph.rank(rows), graph.width(rows)) == (4, 12)
    assert graph.example_shape(rows) == (2, 1, 4, 12)
    past = value(graph.model, "past.0.keys")
    assert graph.declared_shape(past) == ("B", 1, "P", 12)


# Replacing


def test_replacing_keeps_names_types_and_shapes_of_outputs():
    graph = graph_of(Block())
    old = value(graph.model, "hidden")
    builder = graph.builder(graph.producer(old), "test")
    graph.replace(old, builder.add(old, old, "sum"))
    new = graph.returned()[-1]
    assert new is not old
    assert (new.name, str(new.shape), new.dtype) == ("hidden", "[B,S,20]", ir.DataType.FLOAT)
    assert old.name == "hidden/replaced"


def test_what_is_replaced_again_and_again_keeps_names_apart():
    graph = graph_of(Block())
    for _ in range(3):
        old = value(graph.model, "context_0")
        node = graph.producer(old)
        new = graph.builder(node, "test").transpose(node.inputs[0], (0, 1, 2, 3), "turned")
        graph.replace(old, new)
        assert value(graph.model, "context_0") is new
    assert named_twice(graph.model.graph.all_nodes(), graph.taken()) == []


def test_replacing_by_an_input_does_not_rename_the_input():
    graph = graph_of(Block())
    past = value(graph.model, "past.0.keys")
    graph.replace(value(graph.model, "tanh_2"), past)
    assert past.name == "past.0.keys"
    assert value(graph.model, "c_kv_0").producer().inputs[0] is past


def test_what_the_file_says_of_an_output_goes_on():
    graph = graph_of(Block())
    old = value(graph.model, "hidden")
    old.doc_string, old.metadata_props["unit"] = "the hidden state", "none"
    graph.replace(old, graph.builder(graph.producer(old), "test").add(old, old, "sum"))
    new = graph.returned()[-1]
    assert (new.doc_string, new.metadata_props["unit"]) == ("the hidden state", "none")


# The interface


def counted(tape, rows):
    """Something that reads the shape of the past."""
    shape = tape("Shape", "past.0.keys", name="past_shape")
    part = tape("Shape", "past.0.keys", name="past_rows", start=2, end=3)
    tape.output(tape("Cast", shape, to=1), "all_sizes", (4,))
    tape.output(tape("Cast", part, to=1), "some_sizes", (1,))
    return rows


def test_readers_of_a_shape_see_what_the_old_input_would_have_had():
    block = Block(edits={"joined": lambda tape, x: counted(tape, x) if "keys" in x else x})
    graph = graph_of(block)
    old = value(graph.model, "past.0.keys")
    new = graph.replace_input(old, "packed", ("B", 1, "P", 16))
    assert graph.taken()[2] is new
    assert new.dtype == ir.DataType.FLOAT
    node = next(each for each in graph.consumers(old) if each.op_type == "Concat")
    rows = graph.builder(node, "test").slice(new, 0, 12, 3, "first_half")
    ir.convenience.replace_all_uses_with(old, rows)
    given = feeds(block)
    packed = np.concatenate([given["past.0.keys"], given["past.0.values"]], -1)
    seen = compute(graph.model, given | {"packed": packed})
    assert seen["all_sizes"].tolist() == [2, 1, 3, 12]
    assert seen["some_sizes"].tolist() == [3]


def test_a_removed_input_is_counted_by_another():
    block = Block(edits={"joined": lambda tape, x: counted(tape, x) if "keys" in x else x})
    graph = graph_of(block)
    keys, values = value(graph.model, "past.0.keys"), value(graph.model, "past.0.values")
    graph.remove_input(keys, like=values)
    assert keys not in graph.taken()
    assert {node.inputs[0].name for node in graph.shape_readers(values)} == {"past.0.values"}


def test_one_more_input():
    graph = graph_of(Block())
    added = graph.add_input("lengths", "int32", ("B",))
    assert graph.taken()[-1] is added
    assert added.dtype == ir.DataType.INT32
    with pytest.raises(InputError, match="'lengths' already; rename it"):
        graph.add_input("lengths", "int32", ("B",))


def test_outputs_are_merged_in_the_place_of_the_first():
    graph = graph_of(Block(rope=12))
    keys, values = (value(graph.model, f"present.0.{x}") for x in ("keys", "values"))
    node = graph.producer(value(graph.model, "hidden"))
    both = graph.builder(node, "test").concat((value(graph.model, "past.0.keys"), values), 2, "x")
    graph.merge_outputs([keys, values], both, "present.0.latent", ("B", 1, "T", 12))
    assert [each.name for each in graph.returned()] == ["present.0.latent", "hidden"]
    assert str(both.shape) == "[B,1,T,12]"
    assert graph.consumers(keys)
    check(graph.model)


def test_what_branches_read_of_the_graph_is_read():
    graph = graph_of(Block())
    rows, other = value(graph.model, "c_kv_0"), value(graph.model, "k_pe_0")
    graph.dtype(rows)
    builder = graph.builder(graph.producer(value(graph.model, "hidden")), "test")
    condition = builder.greater(builder.dimension(rows, 2), builder.integers(1), "many")
    (made,) = builder.branch(
        condition,
        lambda inner: (inner.add(rows, rows, "sum"),),
        lambda inner: (inner.add(other, other, "sum"),),
        "choice",
    )
    assert {rows, other, condition} <= set(graph.reads(made.producer()))


def test_inlining_another_domain_does_nothing():
    graph = graph_of(Block())
    before = lines(graph.model)
    assert graph.inline("no.such.domain") == 0
    assert lines(graph.model) == before


def test_pruning_keeps_what_branches_read():
    graph = graph_of(Block())
    rows = value(graph.model, "c_kv_0")
    graph.dtype(rows)
    hidden = value(graph.model, "hidden")
    builder = graph.builder(graph.producer(hidden), "test")
    outside = builder.add(rows, rows, "outside")
    condition = builder.greater(builder.dimension(rows, 2), builder.integers(1), "many")
    (made,) = builder.branch(
        condition,
        lambda inner: (inner.add(outside, rows, "sum"),),
        lambda inner: (inner.add(rows, rows, "twice"),),
        "choice",
    )
    made.shape = ir.Shape([None] * 4)
    graph.model.graph.outputs.append(made)
    assert graph.prune() == 0
    check(graph.model)
