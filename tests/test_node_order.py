"""Nodes out of order, in the graph, in branches and in functions: sorted, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper

from mla_opt import inspect, optimize
from mla_opt.errors import InputError
from mla_opt.files import model_io
from mla_opt.verification import verify
from tests.files.small_models import proto, refused, save
from tests.graphs.latent_block import Block, build

FLOAT = TensorProto.FLOAT


def graph(nodes: list[onnx.NodeProto], name: str, outputs: list[str]) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(o, FLOAT, None) for o in outputs]
    )


def nested() -> Any:
    """``y = (2x > 0 ? 2x + 2x : x) + 2x``, the sum in a function; every body has several nodes."""
    absolute = [helper.make_node("Abs", ["a"], ["b"]), helper.make_node("Add", ["b", "b"], ["c"])]
    double = helper.make_function(
        "own", "TwiceAbsolute", ["a"], ["c"], absolute, [helper.make_opsetid("", 18)]
    )
    then = [
        helper.make_node("Add", ["twice", "twice"], ["t0"]),
        helper.make_node("Identity", ["t0"], ["t1"]),
    ]
    branches = {
        "then_branch": graph(then, "then", ["t1"]),
        "else_branch": graph([helper.make_node("Identity", ["x"], ["e"])], "else", ["e"]),
    }
    zero = helper.make_tensor("zero", FLOAT, [], [0.0])
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"], name="doubled"),
        helper.make_node("ReduceSum", ["twice"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["chosen"], name="chooser", **branches),
        helper.make_node("TwiceAbsolute", ["chosen"], ["absolute"], domain="own"),
        helper.make_node("Add", ["absolute", "twice"], ["y"]),
    ]
    main = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", FLOAT, [3])],
        [helper.make_tensor_value_info("y", FLOAT, [3])],
        [zero],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(main, opset_imports=opsets, ir_version=10, functions=[double])


def turned_over(model: Any) -> Any:
    """The nodes of every body the other way round."""
    branches = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
    for body in (model.graph, *branches, *model.functions):
        nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in body.node]
        del body.node[:]
        body.node.extend(reversed(nodes))
    return model


def run(model: ir.Model) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {"x": np.asarray([1, -2, 3], np.float32)})
    return np.asarray(result)


def test_every_body_is_sorted(tmp_path: Path) -> None:
    expected = run(model_io.read_model(save(tmp_path / "m.onnx", nested())))
    model = model_io.read_model(save(tmp_path / "u.onnx", turned_over(nested())))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(run(model), expected)
    model.clone()


def test_what_is_in_order_stays_as_it_is(tmp_path: Path) -> None:
    model = model_io.read_model(save(tmp_path / "m.onnx", nested()))
    kinds = [node.op_type for node in nested().graph.node]
    assert [node.op_type for node in model.graph] == kinds


def circle() -> Any:
    model = nested()
    model.graph.node[0].input[1] = "chosen"
    return model


def branch_that_reads_its_own_result() -> Any:
    model = nested()
    model.graph.node[3].attribute[0].g.node[0].input[0] = "chosen"
    return model


def node_that_reads_itself() -> Any:
    model = nested()
    model.graph.node[5].input[1] = "y"
    return model


def circle_in_a_function() -> Any:
    model = nested()
    model.functions[0].node[0].input[0] = "c"
    return model


def nothing_makes_it() -> Any:
    model = nested()
    model.graph.node[3].attribute[0].g.node[0].input[0] = "gone"
    return model


def no_node_makes_the_output() -> Any:
    model = nested()
    model.graph.node[3].attribute[0].g.output[0].name = "gone"
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (circle, ("waits for its own result", "'doubled' (Add)")),
        (branch_that_reads_its_own_result, ("waits for its own result", "'chooser' (If)")),
        (node_that_reads_itself, ("node 'y' (Add) waits for its own result: no order",)),
        (circle_in_a_function, ("waits for its own result", "(Abs)")),
        (nothing_makes_it, ("node 'e' (Identity) reads 'gone'",)),
        (no_node_makes_the_output, ("a branch of node 'chooser' (If)", "the output 'gone'")),
    ],
)
def test_what_has_no_order_is_refused_in_one_line(
    tmp_path: Path, make: Any, words: tuple[str, ...]
) -> None:
    cause = refused(save(tmp_path / "m.onnx", make()))
    assert all(word in cause for word in words), cause
    assert len(cause) < 250


@pytest.fixture
def unsorted(tmp_path: Path) -> Path:
    """An attention whose nodes lie the other way round."""
    return save(tmp_path / "u.onnx", turned_over(build(Block())))


def test_an_unsorted_file_is_optimized_and_verified(unsorted: Path) -> None:
    assert len(inspect(unsorted).matched) == 1
    result = optimize(unsorted)
    assert len(result.report.sites) == 1
    assert verify(unsorted, result.model).passed
    assert len(optimize(onnx.load(unsorted)).report.sites) == 1


def test_a_graph_in_memory_is_not_sorted_but_refused(unsorted: Path) -> None:
    graph = ir.load(unsorted)
    with pytest.raises(InputError, match=r"model\.graph\.sort\(\)"):
        inspect(graph)
    with pytest.raises(InputError, match=r"model\.graph\.sort\(\)"):
        verify(graph, graph)
    graph.graph.sort()
    assert len(inspect(graph).matched) == 1


def test_a_message_that_is_malformed_is_refused() -> None:
    broken = proto()
    broken.graph.initializer[0].data_type = 999
    with pytest.raises(InputError, match="is malformed"):
        inspect(broken)
    with pytest.raises(InputError, match="original model is malformed"):
        verify(broken, broken)
