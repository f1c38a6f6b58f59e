"""What an ONNX graph computes of stored tensors alone, or twice alike, the same in every call."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mla_opt.graphs.onnx.alike import alike
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


def made(op_type: str, *inputs: str, **attributes: object) -> list[ir.Value]:
    """What two nodes of these operands make, each behind another node."""
    nodes = [helper.make_node(op_type, inputs, [name], name, **attributes) for name in ("y0", "y1")]
    after = [helper.make_node("Identity", [f"y{place}"], [f"z{place}"]) for place in (0, 1)]
    stored = {"w": np.ones(2, np.float32), "yes": np.True_, "ratio": np.float32(0.5)}
    graph = helper.make_graph(
        [*nodes, *after],
        "graph",
        [helper.make_tensor_value_info("x", FLOAT, [2])],
        [helper.make_tensor_value_info(f"z{place}", FLOAT, None) for place in (0, 1)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    return list(model.graph.outputs)


def is_stored(op_type: str, *inputs: str, **attributes: object) -> bool:
    """Whether a node of these operands makes something stored."""
    return StoredOnly()(made(op_type, *inputs, **attributes)[0])


def are_alike(op_type: str, *inputs: str, **attributes: object) -> bool:
    """Whether two nodes of these operands make the same."""
    return alike(*made(op_type, *inputs, **attributes), lambda value: None)


def test_what_is_computed_of_stored_tensors() -> None:
    assert is_stored("Exp", "w")
    assert is_stored("Dropout", "w")
    assert is_stored("Constant", value_float=1.0)
    assert not is_stored("Mul", "w", "x")


def test_what_is_computed_alike() -> None:
    assert are_alike("Mul", "w", "x")
    assert are_alike("Dropout", "x")


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
    assert not are_alike(op_type, *inputs, **attributes)
