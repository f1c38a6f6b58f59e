"""What an ONNX graph computes of stored tensors alone, the same in every call."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mla_opt.graphs.onnx.stored import StoredOnly

FLOAT = TensorProto.FLOAT
BRANCHES = {
    name: helper.make_graph(
        [helper.make_node("Identity", [source], [name])],
        name,
        [],
        [helper.make_tensor_value_info(name, FLOAT, [2])],
    )
    for name, source in (("then_branch", "x"), ("else_branch", "w"))
}


def is_stored(op_type: str, *inputs: str, **attributes: object) -> bool:
    """Whether a node of these operands makes something stored."""
    node = helper.make_node(op_type, inputs, ["y"], "node", **attributes)
    after = helper.make_node("Identity", ["y"], ["z"])
    stored = {"w": np.ones(2, np.float32), "yes": np.True_, "ratio": np.float32(0.5)}
    graph = helper.make_graph(
        [node, after],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, [2])],
        [helper.make_tensor_value_info("z", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    made = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    return StoredOnly()(made.graph.outputs[0])


def test_what_is_computed_of_stored_tensors() -> None:
    assert is_stored("Exp", "w")
    assert is_stored("Dropout", "w")
    assert is_stored("Constant", value_float=1.0)
    assert not is_stored("Mul", "w", "x")


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("RandomNormal", (), {"shape": [2]}),
        ("RandomUniformLike", ("w",), {}),
        ("Bernoulli", ("w",), {}),
        ("Multinomial", ("w",), {}),
        ("Dropout", ("w", "ratio", "yes"), {}),
        ("If", ("yes",), BRANCHES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_random_or_may_read_more_is_not(op_type, inputs, attributes) -> None:
    assert not is_stored(op_type, *inputs, **attributes)
