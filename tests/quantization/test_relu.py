"""Grids that cut off one sign: quantizers let them do what a Relu did, which must not get lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import mla_opt
from mla_opt.errors import NothingMatchedError
from mla_opt.graphs.onnx.quantization.roundings import Roundings
from tests.graphs.latent_block import Block, Tape, build

ROWS = np.linspace(-3, 3, 25, dtype=np.float32)


def rounded(zero: int, before: str | None = None, kind: type = np.uint8) -> onnx.ModelProto:
    """``x`` on a grid of step 1/16, after the operator ``before``."""
    first = [] if before is None else [helper.make_node(before, ["x"], ["inner"])]
    name = "x" if before is None else "inner"
    nodes = [
        *first,
        helper.make_node("QuantizeLinear", [name, "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [25]) for n in "xy"]
    stored = [
        onnx.numpy_helper.from_array(np.float32(1 / 16), "scale"),
        onnx.numpy_helper.from_array(kind(zero), "zero"),
    ]
    graph = helper.make_graph(nodes, "rounded", value[:1], value[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def unrounded(model: onnx.ModelProto) -> tuple[list[str], Any]:
    """Operators without the rounding, and what they make of ``ROWS``."""
    opened = ir.from_proto(model)
    assert len(Roundings.out_of(opened).taken) == 1
    proto = ir.to_proto(opened)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return [node.op_type for node in proto.graph.node], session.run(None, {"x": ROWS})[0]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (rounded(0), np.maximum(ROWS, 0)),
        (rounded(-128, kind=np.int8), np.maximum(ROWS, 0)),
        (rounded(255), np.minimum(ROWS, 0)),
        (rounded(100), ROWS),
        (rounded(0, kind=np.int8), ROWS),
        (rounded(0, "Sigmoid"), 1 / (1 + np.exp(-ROWS))),
    ],
)
def test_what_a_grid_stands_for(model: onnx.ModelProto, expected: Any) -> None:
    kinds, made = unrounded(model)
    np.testing.assert_allclose(made, expected, atol=1e-6)
    signed = np.array_equal(expected, ROWS) or expected.min() > 0
    assert ("Relu" in kinds) != signed


@pytest.mark.parametrize("before", ["Sigmoid", "Exp", "Abs", "Sqrt", "Softmax"])
def test_no_relu_is_needed_where_nothing_is_negative(before: str) -> None:
    kinds, _ = unrounded(rounded(0, before))
    assert "Relu" not in kinds


def test_rows_behind_such_a_grid_are_not_taken_for_linear() -> None:
    """Keys that a grid cuts off below zero are a Relu of the rows."""

    def cut_off(tape: Tape, made: Any) -> Any:
        step = tape.stored(np.float32(1 / 16).reshape(()), "step")
        zero = tape.stored(np.uint8(0).reshape(()), "zero")
        return tape("DequantizeLinear", tape("QuantizeLinear", made, step, zero), step, zero)

    with pytest.raises(NothingMatchedError) as caught:
        mla_opt.optimize(build(Block(edits={"made": cut_off})))
    assert caught.value.report is not None
    (refusal,) = caught.value.report.refusals
    assert "Relu" in refusal.reason
