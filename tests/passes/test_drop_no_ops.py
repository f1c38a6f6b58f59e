from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

import mla_opt
from mla_opt import passes
from tests.graphs.latent_block import Block, Tape, build
from tests.passes.harness import (
    assert_generates_same,
    compute,
    graph_of,
    kind_of,
    kinds,
    lines,
    run,
)

END = np.iinfo(np.int64).max


def sizes(tape, value, *axes):
    """The sizes of some axes as a graph computes them; a number stands for itself."""
    parts = [tape("Shape", value, start=axis, end=axis + 1) for axis in axes]
    return tape("Concat", *parts, axis=0)


#: Operators that do nothing to rows [B, 1, T, X], at any B and T.
NOTHING = {
    "Concat": lambda tape, x: tape("Concat", x, axis=-2),
    "Identity": lambda tape, x: tape("Identity", x),
    "Sum": lambda tape, x: tape("Sum", x),
    "Max": lambda tape, x: tape("Max", x),
    "Min": lambda tape, x: tape("Min", x),
    "Mean": lambda tape, x: tape("Mean", x),
    "Split": lambda tape, x: tape("Split", x, num_outputs=1, axis=1),
    "Cast": lambda tape, x: tape("Cast", x, to=tape.kind),
    "CastLike": lambda tape, x: tape("CastLike", x, x),
    "Dropout": lambda tape, x: tape("Dropout", x, tape.scalar(0.5)),
    "Dropout-told": lambda tape, x: tape(
        "Dropout", x, tape.scalar(0.5), tape.stored(np.asarray(False), "trains")
    ),
    "Transpose": lambda tape, x: tape("Transpose", x, perm=[0, 1, 2, 3]),
    "Slice": lambda tape, x: tape("Slice", x, tape.ints(0), tape.ints(END), tape.ints(-2)),
    "Slice-axes": lambda tape, x: tape(
        "Slice", x, tape.ints(0, 0), tape.ints(END, END), tape.ints(2, 0), tape.ints(1, 1)
    ),
    "Slice-size": lambda tape, x: tape(
        "Slice", x, tape.ints(0), tape("Shape", x, start=2, end=3), tape.ints(2)
    ),
    "Slice-part": lambda tape, x: tape(
        "Slice", tape("Concat", x, x, axis=1), tape.ints(-1), tape.ints(END), tape.ints(1)
    ),
    "Slice-part-size": lambda tape, x: tape(
        "Slice",
        tape("Concat", x, x, axis=2),
        tape.ints(0),
        tape("Shape", x, start=2, end=3),
        tape.ints(2),
    ),
    "Reshape": lambda tape, x: tape("Reshape", x, tape.ints(0, 0, 0, 0)),
    "Reshape-rest": lambda tape, x: tape("Reshape", x, tape.ints(0, 1, -1, 0)),
    "Reshape-shape": lambda tape, x: tape("Reshape", x, tape("Shape", x)),
    "Reshape-sizes": lambda tape, x: tape("Reshape", x, sizes(tape, x, 0, 1, 2, 3)),
    "Reshape-gathered": lambda tape, x: tape(
        "Reshape", x, tape("Gather", tape("Shape", x), tape.ints(0, 1, 2, 3), axis=0)
    ),
    "Expand": lambda tape, x: tape("Expand", x, tape.ints(1, 1, 1)),
    "Expand-shape": lambda tape, x: tape("Expand", x, tape("Shape", x)),
    "Tile": lambda tape, x: tape("Tile", x, tape.ints(1, 1, 1, 1)),
    "Pad": lambda tape, x: tape("Pad", x, tape.ints(*[0] * 8)),
    "Clip": lambda tape, x: tape("Clip", x),
    "Add": lambda tape, x: tape("Add", tape.scalar(0.0), x),
    "Sub": lambda tape, x: tape("Sub", x, tape.scalar(0.0)),
    "Mul": lambda tape, x: tape("Mul", x, tape.stored(np.ones((1, 1), np.float32), "ones")),
    "Div": lambda tape, x: tape("Div", x, tape.scalar(1.0)),
    "Pow": lambda tape, x: tape("Pow", x, tape.scalar(1.0)),
    "Squeeze": lambda tape, x: tape("Squeeze", tape("Unsqueeze", x, tape.ints(1)), tape.ints(-4)),
    "Unsqueeze": lambda tape, x: tape("Unsqueeze", tape("Squeeze", x, tape.ints(1)), tape.ints(1)),
    "Several": lambda tape, x: tape("Identity", tape("Concat", tape("Identity", x), axis=0)),
}

#: Near misses; some of them do nothing in an example, where T is 7 and B is 2.
SOMETHING = {
    "Concat": lambda tape, x: tape("Concat", x, x, axis=0),
    "Cast": lambda tape, x: tape("Cast", x, to=TensorProto.DOUBLE),
    "Dropout": lambda tape, x: tape(
        "Dropout", x, tape.scalar(0.5), tape.stored(np.asarray(True), "trains")
    ),
    "Dropout-input": lambda tape, x: tape(
        "Dropout", x, tape.scalar(0.5), tape.input("trains", (), TensorProto.BOOL)
    ),
    "Transpose": lambda tape, x: tape("Transpose", x, perm=[1, 0, 2, 3]),
    "Transpose-none": lambda tape, x: tape("Transpose", x),
    "Slice-start": lambda tape, x: tape("Slice", x, tape.ints(-7), tape.ints(END), tape.ints(2)),
    "Slice-end": lambda tape, x: tape("Slice", x, tape.ints(0), tape.ints(7), tape.ints(2)),
    "Slice-step": lambda tape, x: tape(
        "Slice", x, tape.ints(0), tape.ints(END), tape.ints(2), tape.ints(2)
    ),
    "Slice-other": lambda tape, x: tape(
        "Slice", x, tape.ints(0), tape("Shape", x, start=0, end=1), tape.ints(2)
    ),
    "Slice-parts": lambda tape, x: tape(
        "Slice", tape("Concat", x, x, x, axis=1), tape.ints(0), tape.ints(2), tape.ints(1)
    ),
    "Slice-part-other": lambda tape, x: tape(
        "Slice", tape("Concat", x, x, axis=1), tape.ints(0), tape.ints(1), tape.ints(2)
    ),
    "Slice-order": lambda tape, x: tape(
        "Slice", x, tape.ints(0, 0), tape.ints(END, 3), tape.ints(3, 2)
    ),
    "Reshape": lambda tape, x: tape("Reshape", x, tape.ints(0, 0, 7, -1)),
    "Reshape-rank": lambda tape, x: tape("Reshape", x, tape.ints(0, 0, -1)),
    "Reshape-other": lambda tape, x: tape("Reshape", x, sizes(tape, x, 2, 1, 0, 3)),
    "Expand": lambda tape, x: tape("Expand", x, tape.ints(2, 1, 1, 1)),
    "Expand-rank": lambda tape, x: tape("Expand", x, tape.ints(1, 1, 1, 1, 1)),
    "Tile": lambda tape, x: tape("Tile", x, tape.ints(1, 1, 2, 1)),
    "Pad": lambda tape, x: tape("Pad", x, tape.ints(0, 0, 0, 0, 0, 0, 1, 0)),
    "Clip": lambda tape, x: tape("Clip", x, tape.scalar(-1.0)),
    "Add": lambda tape, x: tape("Add", x, tape.scalar(1e-30)),
    "Add-wide": lambda tape, x: tape("Add", x, tape.stored(np.zeros((2, 1, 1, 1, 1), "f"), "z")),
    "Add-tall": lambda tape, x: tape("Add", x, tape.stored(np.zeros((2, 1, 1, 1), "f"), "z")),
    "Sub": lambda tape, x: tape("Sub", tape.scalar(0.0), x),
    "Div": lambda tape, x: tape("Div", tape.scalar(1.0), x),
    "Pow": lambda tape, x: tape("Pow", tape.scalar(1.0), x),
    "Squeeze": lambda tape, x: tape("Squeeze", tape("Unsqueeze", x, tape.ints(0)), tape.ints(2)),
}


def model_of(build_node, rank: int = 4) -> onnx.ModelProto:
    """``x [B, 1, T, 5] -> the operators -> Neg -> y``."""
    tape = Tape(Block())
    tape("Neg", build_node(tape, tape.input("x", ("B", 1, "T", 5))), name="y")
    kind = TensorProto.FLOAT
    outputs = [onnx.helper.make_tensor_value_info("y", kind, [None] * rank)]
    graph = onnx.helper.make_graph(
        tape.nodes, "graph", tape.inputs, outputs, list(tape.stores.values())
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def read_by_y(graph) -> str:
    (node,) = (node for node in graph.model.graph if node.outputs[0].name == "y")
    return node.inputs[0].name


def dropped(graph):
    """Run the pass without checks: what these models return has no declared shape."""
    return kind_of("drop_no_ops")().run(graph)


@pytest.mark.parametrize(
    ("kind", "neutral", "stays"),
    [
        ("And", np.asarray(True), False),
        ("Or", np.zeros((1, 1), bool), False),
        ("And", np.asarray(False), True),
        ("Or", np.asarray(True), True),
        ("And", np.ones((2, 1, 1, 1), bool), True),
    ],
)
def test_truths(kind: str, neutral: np.ndarray, stays: bool) -> None:
    """Exports begin a mask with "all may be seen"."""
    for turned in (False, True):
        tape = Tape(Block())
        operands = tape.input("x", ("B", 1, "T", 5), TensorProto.BOOL), tape.stored(neutral, "n")
        tape("Not", tape(kind, *(reversed(operands) if turned else operands)), name="y")
        outputs = [onnx.helper.make_tensor_value_info("y", TensorProto.BOOL, [None] * 4)]
        stores = list(tape.stores.values())
        graph = onnx.helper.make_graph(tape.nodes, "graph", tape.inputs, outputs, stores)
        opset = [onnx.helper.make_opsetid("", 18)]
        opened = graph_of(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8))
        dropped(opened)
        assert (read_by_y(opened) == "x") is not stays


@pytest.mark.parametrize("name", NOTHING)
def test_what_does_nothing_is_read_past(name):
    graph = graph_of(model_of(NOTHING[name]))
    result = dropped(graph)
    assert read_by_y(graph) == "x"
    assert result.rewritten >= 1


@pytest.mark.parametrize("name", SOMETHING)
def test_what_does_something_stays(name):
    model = model_of(SOMETHING[name])
    graph = graph_of(model)
    result = dropped(graph)
    assert lines(graph.model) == lines(model)
    assert result.rewritten == 0


def test_sizes_that_only_agree_in_an_example_are_not_the_same():
    """Another input's axis is as long in every example, and nothing says that it always is."""

    def reshaped(tape, x):
        other = tape.input("other", ("B2", 1, "T2", 5))
        return tape("Reshape", x, tape("Shape", other))

    graph = graph_of(model_of(reshaped))
    dropped(graph)
    assert read_by_y(graph) != "x"


def test_a_file_that_contradicts_itself_proves_nothing():
    model = model_of(lambda tape, x: tape("Identity", tape("Tile", x, tape.ints(1, 1, 2, 1))))
    for node, rows in zip(model.graph.node, (8, 4)):  # what Identity returns is said to be shorter
        info = onnx.helper.make_tensor_value_info(node.output[0], 1, [2, 1, rows, 5])
        model.graph.value_info.append(info)
    graph = graph_of(ir.from_proto(model))
    (tile, identity, _) = graph.model.graph
    assert graph.unchanged(identity) is None
    assert graph.unchanged(tile) is None


def identity_of(tape, value):
    return tape("Identity", value)


def test_an_output_keeps_its_name():
    """What makes the rows has the name of the output, and nothing else reads the old one."""

    def returned(tape, value):
        return tape("Identity", tape("Concat", value, axis=2))

    block = Block(edits={"projected": returned})
    graph = graph_of(block)
    run(graph, "drop_no_ops")
    assert kinds(graph.model)["Identity"] == 0
    assert [each.name for each in graph.model.graph.outputs] == [
        each.name for each in build(block).graph.output
    ]
    assert_generates_same(block, graph.model)


@pytest.mark.parametrize("source", ["input", "stored", "output"])
def test_an_output_that_is_something_else_with_a_name_keeps_its_operator(source):
    def returned(tape, x):
        if source == "stored":
            value = tape.stored(np.ones((2, 1, 3, 5), np.float32), "stored")
        else:
            value = x if source == "input" else tape("Relu", x, name="first")
        tape("Neg", tape("Identity", value, name="same"), name="negative")
        return x

    model = model_of(returned)
    names = ["same", "negative", *(["first"] if source == "output" else [])]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, [None] * 4))
    graph = graph_of(model)
    dropped(graph)
    (negative,) = (n for n in graph.model.graph if n.outputs[0].name == "negative")
    wanted = {"input": "x", "stored": "stored", "output": "first"}[source]
    assert negative.inputs[0].name == wanted
    given = {"x": np.random.default_rng(0).standard_normal((2, 1, 3, 5)).astype(np.float32)}
    before, after = compute(model, given), compute(graph.model, given)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


def past_first(tape, value):
    """An operator of one operand between the past and its new rows, and one behind both."""
    node = next(each for each in reversed(tape.nodes) if value in each.output)
    before = tape.nodes.pop()
    assert before == node
    past = tape("Concat", node.input[0], axis=2)
    tape("Concat", past, node.input[1], axis=2, name=value)
    return value


@pytest.mark.parametrize("cache", ["keep", "packed", "static:16"])
def test_nothing_between_a_cache_and_its_rows(cache):
    """Every layer's cache is changed, whatever lies between it and its rows in the first."""
    block = Block(layers=2, edits={"joined": past_first})
    result = mla_opt.optimize(build(block), cache=cache, allow_unmatched=False)
    layouts = {site.cache_layout_after for site in result.report.sites}
    assert layouts == {"split" if cache == "keep" else cache.partition(":")[0]}
    assert_generates_same(block, result.model)


def test_without_the_pass_such_a_cache_is_refused():
    block = Block(layers=2, edits={"joined": past_first})
    names = [name for name in passes.names() if name != "drop_no_ops"]
    with pytest.raises(
        mla_opt.RefusedError, match=r"cache packed cannot be had for 2 of 2"
    ) as told:
        mla_opt.optimize(build(block), cache="packed", passes=names)
    assert {each.code for each in told.value.report.refusals} == {"cache_not_recognized"}


def test_a_model_in_which_nothing_is_found_stays_as_it_is():
    block = Block(layers=0, edits={"hidden": identity_of})
    model = build(block)
    model.graph.node.insert(0, onnx.helper.make_node("Identity", ["inputs_embeds"], ["copied"]))
    model.graph.node[1].input[0] = "copied"
    result = mla_opt.optimize(model, allow_unmatched=True)
    assert lines(result.model) == lines(model)
