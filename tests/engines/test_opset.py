from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, version_converter

from mla_opt.errors import InputError
from mla_opt.graphs.onnx.opset import SMALL_BYTES, at_least
from tests.graphs.latent_block import Block, build, feeds


def outputs(proto, given):
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, given)


@pytest.mark.parametrize("opset", [14, 17, 18, 20])
def test_computes_the_same(opset):
    block = Block(opset=opset, hidden=64)
    proto = build(block)
    before = ir.from_proto(proto)
    raised = at_least(before, 24)
    assert raised.opset_imports[""] == 24
    assert before.opset_imports[""] == opset
    assert [v.name for v in raised.graph.inputs] == [v.name for v in before.graph.inputs]
    assert any(v.const_value.nbytes > SMALL_BYTES for v in raised.graph.initializers.values())
    given = feeds(block)
    for seen, wanted in zip(outputs(ir.to_proto(raised), given), outputs(proto, given)):
        np.testing.assert_allclose(seen, wanted, atol=1e-6)


def test_a_new_model_stays():
    model = ir.from_proto(build(Block(opset=24)))
    assert at_least(model, 24) is model


def test_metadata_stays():
    model = ir.from_proto(build(Block()))
    model.metadata_props["origin"] = "a test"
    assert at_least(model, 24).metadata_props["origin"] == "a test"


def test_large_weights_are_not_copied():
    model = ir.from_proto(build(Block(hidden=64)))
    raised = at_least(model, 24)
    large = [n for n, v in model.graph.initializers.items() if v.const_value.nbytes > SMALL_BYTES]
    assert large
    for name in large:
        assert raised.graph.initializers[name].const_value is (
            model.graph.initializers[name].const_value
        )


def of_one_node(op_type: str, opset: int) -> ir.Model:
    node = helper.make_node(op_type, ["x", "s"], ["y"])
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xsy"]
    graph = helper.make_graph([node], "g", kinds[:2], kinds[2:])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def test_what_onnx_does_not_define():
    with pytest.raises(InputError, match="SimplifiedLayerNormalization, which ONNX does not def"):
        at_least(of_one_node("SimplifiedLayerNormalization", 18), 24)


def test_what_onnx_cannot_convert(monkeypatch):
    def fail(*_):
        raise RuntimeError("no adapter\nfor Add")

    monkeypatch.setattr(version_converter, "convert_version", fail)
    with pytest.raises(InputError, match="raised to opset 24, which is needed here: no adapter"):
        at_least(of_one_node("Add", 18), 24)


def test_local_functions_are_refused():
    body = helper.make_function(
        "local",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 18)],
    )
    kinds = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    node = helper.make_node("Twice", ["x"], ["y"], domain="local")
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    graph = helper.make_graph([node], "g", kinds[:1], kinds[1:])
    proto = helper.make_model(graph, functions=[body], opset_imports=imports, ir_version=10)
    onnx.checker.check_model(proto)
    with pytest.raises(InputError, match="has local functions and opset 18"):
        at_least(ir.from_proto(proto), 24)
