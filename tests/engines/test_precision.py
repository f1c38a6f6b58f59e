from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from mla_opt.engines.precision import convert, weight_type
from mla_opt.errors import InputError
from tests.graphs.latent_block import Block, build, feeds
from tests.passes.harness import assert_close, check, compute, generate
from tests.passes.test_lower_to_tensorrt import ROWS, lowered, opset24

CACHES = ("past.0.latent",)


def types(model: ir.Model) -> dict[str, set[str]]:
    """The floating-point types that each operator computes in."""
    found: dict[str, set[str]] = {}
    for node in model.graph:
        kinds = {v.dtype.name for v in (*node.inputs, *node.outputs) if v is not None and v.dtype}
        found.setdefault(node.op_type, set()).update(kinds & {"FLOAT", "FLOAT16", "BFLOAT16"})
    return found


@pytest.mark.parametrize("phase", ["prefill", "decode", "standard"])
@pytest.mark.parametrize("options", [{}, {"bias": "both", "sink": True}, {"value_bias": True}])
def test_numbers_in_float16(phase, options):
    block = opset24(**options)
    graph, _ = lowered(block, phase.replace("standard", "decode"), plugin=phase != "standard")
    model = convert(graph.model, "float16", CACHES)
    steps = (7,) if phase == "prefill" else (5, 1, 3)
    expected = generate(build(block), block, steps)
    for seen, wanted in zip(generate(model, block, steps), expected):
        assert_close(seen, wanted, 1e-2)


@pytest.mark.parametrize("phase", ["prefill", "decode", "standard"])
@pytest.mark.parametrize("lowest", [float(np.finfo(np.float32).min), -np.inf])
def test_padding_makes_no_nan_in_float16(phase, lowest):
    """Masks hold float32's lowest number, which float16 does not have."""
    block = opset24()
    graph, _ = lowered(block, phase.replace("standard", "decode"), plugin=phase != "standard")
    model = convert(graph.model, "float16", CACHES)
    given = feeds(block, 2, 5, 0)
    hidden = np.triu(np.ones((5, 5), bool), 1)[None, None] | np.zeros((2, 1, 5, 5), bool)
    hidden[0, 0, :2] = True  # the first two tokens of the first sequence are padding
    hidden[0, 0, :, :2] = True
    given["attention_mask"] = np.where(hidden, lowest, 0).astype(np.float32)
    given["past.0.latent"] = np.zeros((2, 1, ROWS, 16), np.float16)
    given["past_len"] = np.zeros(2, np.int32)
    seen = compute(model, given)
    assert all(np.isfinite(array.astype(np.float32)).all() for array in seen.values())
    expected = compute(build(block), {**given, **empty(block)})["hidden"]
    tokens = np.ones((2, 5), bool)
    tokens[0, :2] = False
    assert_close(seen["hidden"][tokens], expected[tokens], 1e-2)


@pytest.mark.parametrize("lowest", [float(np.finfo(np.float32).min), -np.inf])
def test_fused_attention_is_fed_finite_masks(lowest):
    """ONNX Runtime forgives a row of nothing but -inf; a kernel that divides by its sum may not."""
    block = opset24()
    graph, _ = lowered(block, "prefill")
    model = convert(graph.model, "float16", CACHES)
    (attention,) = (node for node in model.graph if node.op_type == "Attention")
    mask = attention.inputs[3]
    assert mask is not None
    model.graph.outputs.append(mask)
    given = feeds(block, 2, 5, 0)
    given["attention_mask"] = np.full_like(given["attention_mask"], lowest)
    given["past.0.latent"] = np.zeros((2, 1, ROWS, 16), np.float16)
    given["past_len"] = np.zeros(2, np.int32)
    assert np.isfinite(compute(model, given)[mask.name].astype(np.float32)).all()


def empty(block: Block) -> dict:
    """The past that the block itself takes: none."""
    made = feeds(block, 2, 5, 0)
    return {name: array for name, array in made.items() if name.startswith("past.")}


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_products_and_caches_are_narrow_and_all_else_is_not(precision, phase):
    graph, _ = lowered(opset24(bias="boolean"), phase)
    model = convert(graph.model, precision, CACHES)
    check(model)
    narrow, kinds = precision.upper(), types(model)
    for op_type in ("MatMul", "Attention", "TensorScatter", "LatentAttention"):
        assert kinds.get(op_type, {narrow}) == {narrow}, op_type
    for op_type in ("Softmax", "Where", "Add", "Mul", "Sqrt"):
        assert kinds.get(op_type, {"FLOAT"}) <= {"FLOAT"}, op_type
    ends = {v.name: v.dtype.name for v in (*model.graph.inputs, *model.graph.outputs)}
    assert ends["past.0.latent"] == ends["present.0.latent"] == narrow
    assert ends["hidden"] == "FLOAT"


def test_the_original_stays():
    graph, _ = lowered(opset24())
    before = ir.to_proto(graph.model).SerializeToString()
    convert(graph.model, "float16", CACHES)
    assert ir.to_proto(graph.model).SerializeToString() == before


def test_weights_that_only_products_read_are_stored_once():
    graph, _ = lowered(opset24())
    model = convert(graph.model, "float16", CACHES)
    graph_of_stored = model.graph.initializers
    read = {v.name for node in model.graph for v in node.inputs if v is not None}
    wide = [n for n, v in graph_of_stored.items() if v.dtype == ir.DataType.FLOAT and n in read]
    matrices = [n for n in wide if len(graph_of_stored[n].shape) > 1]
    assert matrices == []
    assert set(graph_of_stored) <= read


def test_a_model_of_that_type_comes_back():
    model = ir.from_proto(build(Block(dtype="float16")))
    assert weight_type(model) == ir.DataType.FLOAT16
    assert convert(model, "float16", ()) is model


def test_another_16_bit_type_is_refused():
    model = ir.from_proto(build(Block(dtype="float16")))
    with pytest.raises(InputError, match="weights are float16: only float32 is converted"):
        convert(model, "bfloat16", ())


def branching(weight: float = 1.0) -> ir.Model:
    """y = (x @ w if flag else x @ w + x @ w), with the product made outside of the branches."""
    kind = TensorProto.FLOAT
    outer = [helper.make_node("MatMul", ["x", "w"], ["p"])]
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["p", "p"][:count], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", kind, [2, 2])],
        )
        for name, op, count in (("then_branch", "Identity", 1), ("else_branch", "Add", 2))
    }
    outer.append(helper.make_node("If", ["flag"], ["y"], **branches))
    graph = helper.make_graph(
        outer,
        "g",
        [
            helper.make_tensor_value_info("x", kind, [2, 2]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", kind, [2, 2])],
        [numpy_helper.from_array(np.full((2, 2), weight, np.float32), "w")],
    )
    return ir.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
    )


def test_branches_read_what_they_capture_in_float32():
    model = convert(branching(), "float16", ())
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert product.outputs[0].dtype == ir.DataType.FLOAT16


def test_a_weight_beyond_float16():
    with pytest.raises(InputError, match=r"weight 'w' holds 1e\+06, too large for float16"):
        convert(branching(1e6), "float16", ())
    convert(branching(1e6), "bfloat16", ())


def test_a_value_of_unknown_type():
    model = branching()
    odd = ir.node("Mystery", [model.graph.inputs[0]], domain="nobody", name="odd")
    odd.outputs[0].name = "odd_out"
    model.graph.insert_before(model.graph[0], odd)
    model.opset_imports["nobody"] = 1
    product = next(node for node in model.graph if node.op_type == "MatMul")
    product.replace_input_with(0, odd.outputs[0])
    with pytest.raises(InputError, match=r"type of 'odd_out', which 'odd' \(Mystery\) makes"):
        convert(model, "float16", ())
