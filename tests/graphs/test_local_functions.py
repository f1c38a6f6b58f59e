"""Local functions are put in the place of their calls, unless they stand for operators."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mla_opt.graphs.onnx.local_functions import inlined


def model(domain: str = "mine", opset: int = 18, depth: int = 1) -> ir.Model:
    """``y = Twice(x)``, where the last of ``depth`` functions adds."""
    names = [f"Twice{level}" for level in range(depth)]
    functions = []
    for name, inner in zip(names, (*names[1:], None)):
        body = helper.make_node("Add", ["a", "a"], ["b"])
        if inner is not None:
            body = helper.make_node(inner, ["a"], ["b"], domain=domain)
        imports = [helper.make_opsetid("", opset), helper.make_opsetid(domain, 1)]
        functions.append(helper.make_function(domain, name, ["a"], ["b"], [body], imports))
    calls = [
        helper.make_node(names[0], ["x"], ["b"], domain=domain),
        helper.make_node(names[0], ["b"], ["y"], domain=domain),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    proto = helper.make_model(
        helper.make_graph(calls, "calls", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(domain, 1)],
        functions=functions,
        ir_version=10,
    )
    return ir.from_proto(proto)


def operators(result: ir.Model) -> list[str]:
    return [node.op_type for node in result.graph]


@pytest.mark.parametrize("depth", [1, 3])
def test_bodies_take_the_place_of_calls(depth: int) -> None:
    given = model(depth=depth)
    result = inlined(given)
    assert operators(result) == ["Add", "Add"]
    assert not result.functions
    assert operators(given) == ["Twice0", "Twice0"]
    onnx.checker.check_model(ir.to_proto(result))


@pytest.mark.parametrize("changes", [{"domain": "com.microsoft"}, {"opset": 17}], ids=str)
def test_operators_with_kernels_and_other_opsets_stay_calls(changes: dict[str, object]) -> None:
    given = model(**changes)  # type: ignore[arg-type]
    assert inlined(given) is given
