"""What each ONNX operator means to the matcher, and in which form it means nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mla_opt.graphs import operations as op
from mla_opt.graphs.onnx.graph import OnnxGraph
from tests.labels import label

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL

INPUTS = {
    "x": (FLOAT, [2, 3, 4, 8]),
    "y": (FLOAT, [2, 3, 4, 8]),
    "w": (FLOAT, [8, 8]),
    "i": (INT, [2]),
    "m": (BOOL, [2, 1, 4, 4]),
    "q": (FLOAT, [2, 3, 4, 8]),
    "p3": (FLOAT, [2, 4, 24]),
    "b": (BOOL, []),
    "t": (FLOAT, [2, 3, "T", 8]),
}
STORED: dict[str, Any] = {
    "two": np.float32(2.0),
    "true": np.True_,
    "false": np.False_,
    "zero": np.float32(0.0),
    "one_element": np.full((1, 1, 1), 0.5, np.float32),
    "vector": np.arange(8, dtype=np.float32),
    "weight": np.ones((8, 5), np.float32),
    "bias": np.ones(5, np.float32),
    "last": np.array([-1]),
    "third": np.array([3]),
    "first": np.array([1]),
    "shape": np.array([0, 3, -1, 2]),
    "index": np.array([1, 0]),
    "twice_heads": np.array([1, 2, 1, 1]),
    "twice_tokens": np.array([1, 1, 2, 1]),
    "low": np.float32(-1e9),
    "packed": np.zeros((5, 1, 4), np.uint8),
    "scales": np.ones((5,), np.float32),
}


def read(op_type: str, *inputs: str, opset: int = 23, outputs: int = 1, **attributes: Any):
    """What a node of these inputs means."""
    domain = attributes.pop("domain", "")
    names = [f"out{index}" for index in range(outputs)]
    node = helper.make_node(op_type, list(inputs), names, "node", domain=domain, **attributes)
    used = [name for name in INPUTS if name in inputs]
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info(name, *INPUTS[name]) for name in used],
        [onnx.ValueInfoProto(name="out0")],
        [numpy_helper.from_array(np.asarray(STORED[n]), n) for n in inputs if n in STORED],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    view = OnnxGraph(model)
    (single,) = view.nodes()
    return view.operation(single)


def kind(*args: Any, **attributes: Any) -> type:
    return type(read(*args, **attributes))


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (("Transpose", "x"), {"perm": [0, 2, 1, 3]}),
        (("Reshape", "x", "shape"), {}),
        (("Squeeze", "x", "first"), {}),
        (("Unsqueeze", "x", "first"), {}),
        (("Slice", "x", "index", "shape"), {}),
        (("Split", "x"), {"num_outputs": 2, "axis": 3, "outputs": 2}),
        (("Identity", "x"), {}),
        (("Flatten", "x"), {}),
        (("Gather", "x", "index"), {"axis": 3}),
        (("Pad", "x", "shape"), {}),
        (("Pad", "x", "shape", "zero"), {"mode": "constant"}),
    ],
    ids=label,
)
def test_layout_moves_its_first_operand(inputs, attributes):
    found = read(*inputs, **attributes)
    assert isinstance(found, op.Layout)
    assert [value.name for value in found.data] == ["x"]
    assert found.concat_axis is None


@pytest.mark.parametrize(("axis", "counted"), [(1, -3), (3, -1), (-2, -2)])
def test_the_axis_of_a_concat_is_counted_from_the_end(axis, counted):
    found = read("Concat", "x", "y", axis=axis)
    assert found.concat_axis == counted
    assert [value.name for value in found.data] == ["x", "y"]


def test_scatter_moves_both_of_its_tensors():
    found = read("ScatterND", "x", "i", "y")
    assert [value.name for value in found.data] == ["x", "y"]
    assert kind("ScatterND", "x", "i", "y", reduction="add") is op.Opaque
    assert kind("ScatterElements", "x", "i", "y", reduction="none") is op.Layout


def test_repetition_and_filling():
    assert read("Expand", "x", "shape").data.name == "x"
    assert kind("Tile", "x", "shape") is op.Broadcast
    assert kind("ConstantOfShape", "shape") is op.Filled


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.float32([-3.5]), -3.5),
        (np.float16([-np.inf]), -np.inf),
        (np.float32([1, 2]), None),
        (np.int64([7]), None),
        (np.array(["text"], dtype=object), None),
    ],
    ids=str,
)
def test_the_number_that_a_tensor_is_filled_with(value, number):
    filling = numpy_helper.from_array(value)
    assert read("ConstantOfShape", "shape", value=filling) == op.Filled(number)
    assert read("ConstantOfShape", "shape") == op.Filled(0.0)


@pytest.mark.parametrize(
    ("inputs", "factor"),
    [
        (("Mul", "x", "two"), 2.0),
        (("Mul", "two", "x"), 2.0),
        (("Mul", "x", "one_element"), 0.5),
        (("Div", "x", "two"), 0.5),
        (("Neg", "x"), -1.0),
    ],
    ids=label,
)
def test_a_stored_number_scales(inputs, factor):
    found = read(*inputs)
    assert isinstance(found, op.Scaled)
    assert (found.data.name, found.factor) == ("x", factor)


def test_dropout_does_nothing_but_in_training():
    assert kind("Dropout", "x") is op.Layout
    assert kind("Dropout", "x", "two") is op.Layout
    assert kind("Dropout", "x", "two", "false") is op.Layout
    assert kind("Dropout", "x", "two", "true") is op.Opaque
    assert kind("Dropout", "x", "two", "b") is op.Opaque


def test_tile_repeats_axes_whose_size_is_fixed():
    assert kind("Tile", "t", "twice_heads") is op.Broadcast
    assert "size varies" in read("Tile", "t", "twice_tokens").why


@pytest.mark.parametrize(
    "inputs",
    [
        ("Mul", "x", "y"),
        ("Div", "x", "zero"),
        ("Pad", "x", "shape", "two"),
        ("Gather", "x", "i"),
        ("Tanh", "x"),
        ("CumSum", "x", "index"),
    ],
    ids=label,
)
def test_what_no_walk_goes_through(inputs):
    assert kind(*inputs) is op.Opaque


def test_a_node_of_another_domain_means_nothing():
    assert kind("Transpose", "x", domain="com.microsoft") is op.Opaque
    assert kind("Transpose", "x", domain="ai.onnx") is op.Layout


def test_linear_layers():
    plain = read("MatMul", "x", "weight")
    assert isinstance(plain, op.Linear)
    assert (plain.data.name, plain.weight.name) == ("x", "weight")
    assert kind("MatMul", "x", "y") is op.MatMul
    assert kind("Gemm", "w", "weight", "bias") is op.Linear
    assert kind("Gemm", "w", "weight", transB=0, alpha=0.5) is op.Linear
    assert kind("Gemm", "w", "weight", transA=1) is op.Opaque
    assert kind("Gemm", "w", "w") is op.Opaque
    quantized = {"domain": "com.microsoft", "K": 8, "N": 5, "bits": 4, "block_size": 16}
    assert kind("MatMulNBits", "x", "packed", "scales", **quantized) is op.Linear
    assert kind("MatMulNBits", "x", "i", "scales", **quantized) is op.Opaque


@pytest.mark.parametrize(
    ("operator", "expected"), [("ReduceMax", op.RowMaximum), ("ReduceSum", op.RowSum)]
)
@pytest.mark.parametrize(("place", "axis"), [("last", -1), ("third", -1), ("first", -3)])
def test_reductions_along_one_axis_that_is_kept(operator, expected, place, axis):
    found = read(operator, "x", place)
    assert (type(found), found.axis) == (expected, axis)
    assert kind(operator, "x", place, keepdims=0) is op.Opaque
    assert kind(operator, "x") is op.Opaque


def test_the_maximum_of_rows_as_older_files_write_it():
    assert read("ReduceMax", "x", opset=17, axes=[-1]).axis == -1
    assert read("ReduceMax", "x", opset=17, axes=[1]).axis == -3
    assert kind("ReduceMax", "x", opset=17, axes=[2, 3]) is op.Opaque


@pytest.mark.parametrize(("axis", "expected"), [(-1, -1), (3, -1), (1, -3)])
def test_softmax_is_over_one_axis(axis, expected):
    found = read("Softmax", "x", axis=axis)
    assert (found.axis, found.logarithm) == (expected, False)
    found = read("LogSoftmax", "x", axis=axis)
    assert (found.axis, found.logarithm) == (expected, True)
    assert read("Softmax", "x").axis == -1


def test_softmax_of_older_files_is_over_all_axes_from_one_on():
    assert kind("Softmax", "x", opset=11) is op.Opaque
    assert kind("Softmax", "x", opset=11, axis=1) is op.Opaque
    assert read("Softmax", "x", opset=11, axis=3).axis == -1


def test_a_product_with_what_is_inverted_is_a_quotient():
    def named(found: Any) -> tuple[str, str]:
        return found.left.name, found.right.name

    assert named(read("Div", "x", "y")) == ("x", "y")
    assert kind("Mul", "x", "y") is op.Opaque


@pytest.mark.parametrize(
    ("target", "expected"),
    [(TensorProto.FLOAT16, op.Cast), (TensorProto.BFLOAT16, op.Cast), (INT, op.Opaque)],
)
def test_casts_between_floats_only(target, expected):
    assert kind("Cast", "x", to=target) is expected
    assert kind("Cast", "i", to=FLOAT) is op.Opaque


def test_the_rest():
    assert isinstance(read("Add", "x", "vector"), op.Add)
    assert isinstance(read("Sub", "x", "y"), op.Subtract)
    assert isinstance(read("Where", "m", "x", "low"), op.Select)
    assert isinstance(read("IsNaN", "x"), op.IsNan)


def test_fused_attention():
    found = read("Attention", "x", "y", "q", "m", scale=0.25, is_causal=1)
    assert isinstance(found, op.FusedAttention)
    names = [each.name for each in (found.query, found.key, found.value, found.bias, found.output)]
    assert names == ["x", "y", "q", "m", "out0"]
    assert (found.scale, found.causal, found.unsupported) == (0.25, True, "")


def test_fused_attention_without_scale():
    assert read("Attention", "x", "y", "q").scale == pytest.approx(8**-0.5)
    assert not read("Attention", "x", "y", "q").causal


@pytest.mark.parametrize(
    ("inputs", "attributes", "reason"),
    [
        (("x", "y", "q"), {"softcap": 5.0}, "softcap"),
        (("x", "y", "q", "", "x", "y"), {}, "does not return them"),
        (("x", "y", "q", "", "x", "y", "i"), {"outputs": 3}, "nonpad_kv_seqlen"),
    ],
)
def test_what_a_fused_attention_may_not_do(inputs, attributes, reason):
    assert reason in read("Attention", *inputs, **attributes).unsupported


def test_fused_attention_with_its_own_cache():
    found = read("Attention", "x", "y", "q", "", "x", "y", outputs=3)
    past = found.past
    names = [each.name for each in (past.key, past.value, past.present_key, past.present_value)]
    assert (names, found.unsupported) == (["x", "y", "out1", "out2"], "")
    assert read("Attention", "x", "y", "q").past is None
    causal = read("Attention", "x", "y", "q", "", "x", "y", outputs=3, is_causal=1)
    assert (causal.causal, causal.unsupported) == (True, "")


MICROSOFT = {"domain": "com.microsoft", "num_heads": 3}


def test_multi_head_attention():
    found = read("MultiHeadAttention", "p3", "p3", "p3", "", "", "m", **MICROSOFT)
    assert (found.flat, found.heads, found.key_heads) == (True, 3, 3)
    assert found.scale == pytest.approx(8**-0.5)
    assert (found.bias.name, found.unsupported, found.past) == ("m", "", None)


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (("p3",), "three operands"),
        (("p3", "x", "x"), "three operands"),
        (("p3", "p3", "p3", "bias"), "bias"),
        (("p3", "p3", "p3", "", "m"), "key_padding_mask"),
        (("p3", "p3", "p3", "", "", "", "x", "y"), "does not return them"),
    ],
)
def test_what_multi_head_attention_may_not_do(inputs, reason):
    assert reason in read("MultiHeadAttention", *inputs, **MICROSOFT).unsupported


GROUPED = {**MICROSOFT, "kv_num_heads": 3}


def test_group_query_attention():
    operands = ("p3", "p3", "p3", "x", "y", "i", "q")
    found = read("GroupQueryAttention", *operands, outputs=3, **GROUPED)
    assert (found.flat, found.heads, found.key_heads, found.causal) == (True, 3, 3, True)
    assert found.scale == pytest.approx(8**-0.5)
    past = found.past
    names = [each.name for each in (past.key, past.value, past.last, past.total)]
    assert (names, found.unsupported) == (["x", "y", "i", "q"], "")


def test_group_query_attention_without_a_past():
    found = read("GroupQueryAttention", "p3", "p3", "p3", "", "", "i", "i", **GROUPED)
    assert "past keys" in found.unsupported
