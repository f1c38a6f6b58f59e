from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import pytest

from mla_opt.errors import InputError
from mla_opt.operator import Signature, function_body, latent_attention
from mla_opt.operator.contract import ATTRIBUTES, INPUTS
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME
from mla_opt.operator.onnx.function_body import FEW_QUERY_ROWS
from tests.operator.cases import (
    ALL_SIGNATURES,
    BATCH,
    EVEN_SIGNATURES,
    HEADS,
    NARROW_SIGNATURES,
    PAST,
    QUANTIZED_SIGNATURES,
    RANK,
    REDUCED_SIGNATURES,
    SCALE,
    difference,
    model,
    name,
    operands,
    run,
    session,
)

TOLERANCE = {np.float16: 2e-3, np.float32: 2e-6, np.float64: 1e-13}


def assert_matches(outputs, signature, feeds, *, scale=SCALE, rank=RANK):
    """The outputs of the body are those of the reference, on the same operands."""
    expected = latent_attention(**feeds, scale=scale, kv_lora_rank=rank, causal=signature.causal)
    tolerance = TOLERANCE[feeds["query"].dtype.type]
    assert len(outputs) == len(signature.outputs)
    assert difference(outputs[0], expected.output) <= tolerance
    for actual, cache in zip(outputs[1:], expected[1:]):
        np.testing.assert_array_equal(actual, cache)


@pytest.mark.parametrize("signature", ALL_SIGNATURES, ids=name)
def test_every_signature_matches_the_reference(signature):
    """Three sequences, one and five new tokens, a past, an empty past, and ragged buffers."""
    runtime = session(model(signature, operands(signature)))
    for query_len in (1, 5):
        for past in (PAST, 0) if signature.has_latent else (PAST,):
            feeds = operands(signature, query_len=query_len, past=past)
            assert_matches(runtime.run(None, feeds), signature, feeds)


@pytest.mark.parametrize("signature", EVEN_SIGNATURES, ids=name)
@pytest.mark.parametrize(
    ("rank", "rope", "opset"), [(6, 4, 15), (6, 4, 24), (3, 5, 18), (6, 0, 18), (4, 4, 21)]
)
def test_halves_of_rows_match_the_reference(signature, rank, rope, opset):
    """Wherever in a row the latent part ends, in the first half or in the second."""
    given = {"rank": rank, "rope": rope}
    proto = model(signature, operands(signature, **given), opset=opset, rank=rank)
    onnx.checker.check_model(proto, full_check=True)
    for query_len, past in ((1, PAST), (5, PAST), (5, 0)):
        if past or signature.has_latent:
            feeds = operands(signature, query_len=query_len, past=past, **given)
            assert_matches(run(proto, feeds), signature, feeds, rank=rank)


@pytest.mark.parametrize("few", [True, False])
def test_halves_of_rows_match_with_few_and_with_many_query_rows(few):
    signature = EVEN_SIGNATURES[0]
    feeds = operands(signature, query_len=1 if few else FEW_QUERY_ROWS)
    outputs = run(model(signature, feeds, style=ONNX_RUNTIME), feeds)
    assert_matches(outputs, signature, feeds)


@pytest.mark.parametrize("opset", [14, 15, 17, 21, 23, 24, 25])
@pytest.mark.parametrize("signature", REDUCED_SIGNATURES, ids=name)
def test_every_opset_matches_the_reference(signature, opset):
    feeds = operands(signature)
    assert_matches(run(model(signature, feeds, opset=opset), feeds), signature, feeds)


@pytest.mark.parametrize("opset", [14, 18, 24])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("signature", REDUCED_SIGNATURES, ids=name)
def test_every_element_type_matches_the_reference(signature, dtype, opset):
    feeds = operands(signature, dtype=dtype)
    assert_matches(run(model(signature, feeds, opset=opset), feeds), signature, feeds)


@pytest.mark.parametrize("opset", [15, 18, 23, 24])
@pytest.mark.parametrize("signature", NARROW_SIGNATURES, ids=name)
def test_narrow_caches_match_the_reference(signature, opset):
    """New rows are rounded, and the rounded rows are what is attended to."""
    proto = model(signature, operands(signature), opset=opset)
    onnx.checker.check_model(proto, full_check=True)
    for query_len in (1, 5):
        feeds = operands(signature, query_len=query_len)
        assert_matches(run(proto, feeds), signature, feeds)


@pytest.mark.parametrize("opset", [15, 19, 23, 24])
@pytest.mark.parametrize("signature", QUANTIZED_SIGNATURES, ids=name)
@pytest.mark.parametrize(("rank", "rope"), [(RANK, 4), (260, 3)])
def test_caches_of_codes_match_the_reference(signature, opset, rank, rope):
    """New rows are quantized as the reference says, and what their codes stand for is seen."""
    if signature.codes == "float8_e4m3fn" and opset < 19:
        pytest.skip("no floats of 8 bits")
    given = {"rank": rank, "rope": rope}
    proto = model(signature, operands(signature, **given), opset=opset, rank=rank)
    onnx.checker.check_model(proto, full_check=True)
    for query_len in (1, 5):
        feeds = operands(signature, query_len=query_len, **given)
        assert_matches(run(proto, feeds), signature, feeds, rank=rank)


def test_codes_of_rows_without_a_rotary_part():
    signature = QUANTIZED_SIGNATURES[0]
    feeds = operands(signature, rope=0)
    assert_matches(run(model(signature, feeds, opset=18), feeds), signature, feeds)


def test_codes_of_8_bit_floats_need_an_opset_that_has_them():
    with pytest.raises(InputError, match="needs opset 19; the model has 18"):
        function_body(QUANTIZED_SIGNATURES[-1], 18)


def test_narrow_caches_need_an_opset_that_can_convert_to_them():
    with pytest.raises(InputError, match="needs opset 15; the model has 14"):
        function_body(NARROW_SIGNATURES[0], 14)


@pytest.mark.parametrize("opset", [14, 16, 18, 21, 24, 25])
@pytest.mark.parametrize("signature", ALL_SIGNATURES, ids=name)
def test_the_checker_accepts_every_body(signature, opset):
    onnx.checker.check_model(model(signature, operands(signature), opset=opset), full_check=True)


@pytest.mark.parametrize("opset", [14, 18, 24])
@pytest.mark.parametrize("signature", REDUCED_SIGNATURES, ids=name)
def test_an_adaptive_body_matches_with_few_and_with_many_query_rows(signature, opset):
    proto = model(signature, operands(signature), opset=opset, style=ONNX_RUNTIME)
    onnx.checker.check_model(proto, full_check=True)
    runtime = session(proto)
    few, many = 1, FEW_QUERY_ROWS // HEADS + 1
    for query_len in (few, many):
        feeds = operands(signature, query_len=query_len)
        assert_matches(runtime.run(None, feeds), signature, feeds)


def test_an_adaptive_body_chooses_between_two_products():
    body = function_body(Signature(), 18, style=ONNX_RUNTIME)
    choice = next(node for node in body if node.op_type == "If")
    steps = [
        [node.op_type for node in choice.attributes[branch].as_graph()]
        for branch in ("then_branch", "else_branch")
    ]
    condition = choice.inputs[0].producer()
    assert condition.op_type == "LessOrEqual"
    assert condition.inputs[1].producer().attributes["value_int"].as_int() == FEW_QUERY_ROWS
    assert steps == [["Transpose", "MatMul", "Transpose"], ["Transpose", "MatMul"]]


@pytest.mark.parametrize("element_type", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
@pytest.mark.parametrize("signature", REDUCED_SIGNATURES, ids=name)
def test_shape_inference_finds_types_and_ranks_through_the_body(signature, element_type):
    proto = model(signature, operands(signature), opset=21, element_type=element_type)
    for output in proto.graph.output:
        output.ClearField("type")
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    for output in inferred.graph.output:
        assert output.type.tensor_type.elem_type == element_type
        assert len(output.type.tensor_type.shape.dim) == 4


@pytest.mark.parametrize("signature", REDUCED_SIGNATURES, ids=name)
def test_the_body_can_be_inlined(signature):
    feeds = operands(signature)
    inlined = onnx.inliner.inline_local_functions(model(signature, feeds))
    assert not inlined.functions
    assert {node.domain for node in inlined.graph.node} == {""}
    assert_matches(run(inlined, feeds), signature, feeds)


@pytest.mark.parametrize(
    "shape",
    [(1,), (6,), (5, 6), (1, 1, 6), (HEADS, 5, 6), (BATCH, 1, 1, 6), (1, HEADS, 1, 1)],
    ids=str,
)
@pytest.mark.parametrize("bias", ["additive", "boolean"])
def test_a_bias_broadcasts(bias, shape):
    random = np.random.default_rng(1)
    for causal in (False, True):
        signature = Signature(has_cache=True, bias=bias, causal=causal)
        feeds = operands(signature, past=1)
        number = random.standard_normal(shape)
        feeds["bias"] = number > -1 if bias == "boolean" else number.astype(np.float32)
        assert_matches(run(model(signature, feeds), feeds), signature, feeds)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("bias", ["additive", "boolean"])
def test_rows_that_may_attend_to_nothing_give_zeros(bias, sink, dtype):
    signature = Signature(has_cache=True, bias=bias, sink=sink)
    feeds = operands(signature, dtype=dtype)
    feeds["bias"][1] = False if bias == "boolean" else -np.inf
    output = run(model(signature, feeds), feeds)[0]
    np.testing.assert_array_equal(output[1], 0.0)
    assert (output[0] != 0.0).any(axis=-1).all()


def test_a_sequence_without_any_row_gives_zeros():
    signature = Signature(has_latent=False, has_cache=True, in_place=True)
    feeds = operands(signature)
    output = run(model(signature, feeds), feeds)[0]
    assert feeds["past_len"].tolist() == [0, 2, 5]
    np.testing.assert_array_equal(output[0], 0.0)
    assert (output[1:] != 0.0).all()


def test_a_causal_row_before_the_first_key_gives_zeros():
    signature = Signature(has_latent=False, has_cache=True, causal=True)
    feeds = operands(signature, query_len=5, past=3)
    output = run(model(signature, feeds), feeds)[0]
    np.testing.assert_array_equal(output[:, :, :2], 0.0)
    assert_matches([output], signature, feeds)


@pytest.mark.parametrize("sink", [False, True])
def test_the_most_negative_number_is_an_ordinary_bias(sink):
    """Masks made with finfo.min: hides a column next to others, uniform where it is everywhere."""
    signature = Signature(bias="additive", sink=sink)
    feeds = operands(signature)
    lowest = np.finfo(np.float32).min
    feeds["bias"] = np.where(np.isneginf(feeds["bias"]), lowest, feeds["bias"])
    feeds["bias"][0] = lowest
    output = run(model(signature, feeds), feeds)[0]
    assert_matches([output], signature, feeds)
    if not sink:
        mean = feeds["latent"][:1, :, :, :RANK].mean(axis=2, keepdims=True)
        assert difference(output[:1], np.broadcast_to(mean, output[:1].shape)) <= 2e-6


@pytest.mark.parametrize("level", [-np.inf, -1e4, -88.0, 0.0, 88.0, 1e4])
def test_a_sink_of_any_size(level):
    signature = Signature(sink=True, causal=True)
    feeds = operands(signature) | {"sink": np.array([level, 0.5], np.float32)}
    assert_matches(run(model(signature, feeds), feeds), signature, feeds)


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("in_place", [False, True])
def test_without_rotary_dims(in_place, opset):
    signature = Signature(has_cache=True, in_place=in_place, causal=True)
    feeds = operands(signature, rope=0)
    assert_matches(run(model(signature, feeds, opset=opset), feeds), signature, feeds)


def test_fewer_new_rows_than_queries():
    signature = Signature(has_cache=True, causal=True)
    feeds = operands(signature, query_len=5, past=1)
    feeds["latent"] = feeds["latent"][:, :, :2]
    assert_matches(run(model(signature, feeds), feeds), signature, feeds)


def test_a_wrong_scale_shows():
    signature = Signature(has_cache=True)
    feeds = operands(signature)
    outputs = run(model(signature, feeds, scale=SCALE * 1.01), feeds)
    with pytest.raises(AssertionError):
        assert_matches(outputs, signature, feeds)


def test_swapped_halves_of_the_rotary_dims_show():
    signature = Signature(has_cache=True)
    feeds = operands(signature)
    swapped = feeds["query"][..., [0, 1, 2, 3, 4, 5, 8, 9, 6, 7]]
    outputs = run(model(signature, feeds), feeds | {"query": swapped})
    with pytest.raises(AssertionError):
        assert_matches(outputs, signature, feeds)


def test_two_signatures_live_in_one_model():
    first, second = Signature(), Signature(sink=True)
    feeds = operands(second)
    both = model(second, feeds)
    other = model(first, operands(first))
    other.graph.node[0].output[0] = other.graph.node[0].name = "plain"
    both.functions.extend(other.functions)
    both.graph.node.extend(other.graph.node)
    both.graph.output.append(both.graph.output[0])
    both.graph.output[1].name = "plain"
    onnx.checker.check_model(both, full_check=True)
    with_sink, plain = run(both, feeds)
    assert_matches([with_sink], second, feeds)
    del feeds["sink"]
    assert_matches([plain], first, feeds)


def test_the_function_declares_the_contract():
    signature = Signature(has_cache=True, split=True)
    body = function_body(signature, 21, "any")
    assert body.identifier() == ("mla_opt", "LatentAttention", "any")
    assert tuple(value.name for value in body.inputs) == signature.slots == INPUTS
    assert tuple(value.name for value in body.outputs) == signature.outputs
    proto = ir.serde.serialize_function(body)
    assert tuple(proto.attribute) == ATTRIBUTES
    assert not proto.attribute_proto
    assert [(i.domain, i.version) for i in proto.opset_import] == [("", 21)]


@pytest.mark.parametrize("opset", [13, 26])
def test_an_opset_without_a_body_is_refused(opset):
    with pytest.raises(InputError, match=f"no body for opset {opset}, only for 14 to 25"):
        function_body(Signature(), opset)


CONSTANT_OR_SHAPE = {
    "Constant",
    "CastLike",
    "Cast",
    "Reshape",
    "Gather",
    "Shape",
    "Concat",
    "Range",
}


@pytest.mark.parametrize(
    ("signature", "opset", "steps"),
    [
        (Signature(), 18, "Mul Transpose MatMul Softmax MatMul Slice"),
        (
            Signature(has_cache=True, bias="additive"),
            18,
            "Mul Transpose MatMul Add Softmax MatMul Slice Greater ReduceMax Where",
        ),
        (
            Signature(has_cache=True, in_place=True),
            24,
            "Add TensorScatter Sub LessOrEqual Where Mul Transpose MatMul Add Softmax MatMul Slice",
        ),
        (
            Signature(has_latent=False, has_cache=True, split=True),
            18,
            "Mul Slice Slice Transpose MatMul Transpose MatMul Add Softmax MatMul",
        ),
        (
            Signature(sink=True),
            18,
            "Mul Transpose MatMul Softmax MatMul Slice ReduceMax ReduceMax Log Sub Sub Sigmoid Mul",
        ),
    ],
    ids=["latent", "additive", "in_place", "split", "sink"],
)
def test_the_steps_of_a_body(signature, opset, steps):
    """What reads the scores, and what does not: only these operators do any arithmetic."""
    body = function_body(signature, opset)
    found = [node.op_type for node in body if node.op_type not in CONSTANT_OR_SHAPE]
    assert " ".join(found) == steps
