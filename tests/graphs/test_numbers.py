"""Numbers that a graph computes: what they are, when they are none, and how much work that is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mla_opt.graphs.onnx import numbers
from mla_opt.graphs.onnx.graph import OnnxGraph

Step = tuple[str, tuple[str, ...], dict[str, Any]]


def graph(*steps: Step, **stored: Any) -> tuple[OnnxGraph, ir.Value]:
    """The graph of nodes that make v0, v1, ... of stored tensors; and what the last one makes."""
    nodes = [
        helper.make_node(kind, given, [f"v{place}"], **attributes)
        for place, (kind, given, attributes) in enumerate(steps)
    ]
    last = f"v{len(nodes) - 1}"
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", 4])],
        [onnx.ValueInfoProto(name=last)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    model = ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]))
    return OnnxGraph(model), model.graph.outputs[0]


def cast(value: str, to: int) -> Step:
    return "Cast", (value,), {"to": to}


@pytest.mark.parametrize(
    ("given", "to", "held"),
    [(2.5, TensorProto.INT64, 2.0), (-2.5, TensorProto.INT32, -2.0), (2.5, TensorProto.BOOL, 1.0),
     (0.1, TensorProto.FLOAT16, float(np.float16(0.1))), (2.5, TensorProto.DOUBLE, 2.5),
     (1e6, TensorProto.FLOAT16, None), (2.5, TensorProto.STRING, None)],
)  # fmt: skip
def test_a_number_is_what_its_type_holds(given: float, to: int, held: float | None) -> None:
    facts, value = graph(cast("number", to), number=np.float32(given))
    assert numbers.computed(facts, value) == held


def test_integers_are_not_divided_like_floats() -> None:
    integer = cast("number", TensorProto.INT64)
    halved = ("Div", ("v0", "two"), {})
    facts, value = graph(integer, halved, number=np.float32(5.0), two=np.int64(2))
    value.dtype = ir.DataType.INT64
    assert numbers.computed(facts, value) in (None, 2.0)


def test_a_root_of_a_negative_number_is_none() -> None:
    facts, value = graph(("Pow", ("n", "half"), {}), n=np.float32(-2), half=np.float32(0.5))
    assert numbers.computed(facts, value) is None


def test_a_number_of_every_size_of_which_there_are_several_is_none() -> None:
    facts, value = graph(("Mul", ("x", "one"), {}), one=np.float32(1))
    assert numbers.computed(facts, value) is None


def test_what_is_read_twice_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product with itself, ten times: 1024 paths, 11 values."""
    squares: list[Step] = [("Mul", ("n", "n"), {})]
    squares += [("Mul", (f"v{place}", f"v{place}"), {}) for place in range(9)]
    facts, value = graph(*squares, n=np.float32(1.0001))
    looked: list[ir.Value] = []
    original = facts.small_constant
    monkeypatch.setattr(
        facts, "small_constant", lambda value: (looked.append(value), original(value))[1]
    )
    found = numbers.computed(facts, value)
    assert found == pytest.approx(float(np.float32(1.0001)) ** 1024, rel=1e-6)
    assert len(looked) == 11
