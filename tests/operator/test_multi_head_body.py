"""The body of ``MultiHeadLatentAttention`` in ONNX Runtime against its definition."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.inliner
import pytest

from mla_opt.errors import InputError
from mla_opt.operator import Signature
from mla_opt.operator.contract import OUTPUTS
from mla_opt.operator.kv_b import Storage
from mla_opt.operator.multi_head import ATTRIBUTES, INPUTS, MultiHeadSignature
from mla_opt.operator.onnx import body_expanded
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME, TENSORRT
from mla_opt.operator.onnx.multi_head_body import multi_head_function_body
from tests.operator import cases
from tests.operator.multi_head_cases import (
    PLAIN,
    REAL_STORAGES,
    SMALL_STORAGES,
    V2_LITE,
    expected,
    factors,
    model,
    operands,
    real_operands,
    weights,
)
from tests.operator.multi_head_cases import SMALL as SMALL_DIMS

FORMS = ("absorbed", "expanded")
TOLERANCE = {np.float16: 4e-3, np.float32: 3e-6, np.float64: 1e-13}
PLAIN_WEIGHTS = weights(*SMALL_STORAGES["float32"], SMALL_DIMS)


def assert_matches(outputs, signature, feeds, **options):
    wanted = expected(signature, feeds, **options)
    assert len(outputs) == len(signature.outputs)
    limit = TOLERANCE[feeds["query"].dtype.type]
    assert cases.difference(outputs[0], wanted.output) <= limit
    for actual, cache in zip(outputs[1:], wanted[1:]):
        np.testing.assert_array_equal(actual, cache)


@pytest.mark.parametrize("attention", cases.ALL_SIGNATURES, ids=cases.name)
def test_every_signature_matches_the_reference(attention):
    """Expanded; absorbed, the body is LatentAttention's between two products."""
    signature = MultiHeadSignature(attention, form="expanded")
    runtime = cases.session(model(signature, operands(signature, PLAIN_WEIGHTS)))
    for query_len in (1, 5):
        for past in (cases.PAST, 0) if attention.has_latent else (cases.PAST,):
            feeds = operands(signature, PLAIN_WEIGHTS, query_len=query_len, past=past)
            assert_matches(runtime.run(None, feeds), signature, feeds)


@pytest.mark.parametrize("attention", cases.EVEN_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("style", [TENSORRT, ONNX_RUNTIME], ids=["plain", "adaptive"])
def test_halves_of_rows_match_the_reference(attention, form, style):
    signature = MultiHeadSignature(attention, form=form)
    proto = model(signature, operands(signature, PLAIN_WEIGHTS), style=style)
    for query_len in (1, 5):
        feeds = operands(signature, PLAIN_WEIGHTS, query_len=query_len)
        assert_matches(cases.run(proto, feeds), signature, feeds)


@pytest.mark.parametrize("least", [1, 128])
@pytest.mark.parametrize("attention", cases.REDUCED_SIGNATURES, ids=cases.name)
def test_blocks_of_queries_match_the_reference(attention, least, monkeypatch):
    """Full blocks, one that is none, and empty ones."""
    monkeypatch.setattr(body_expanded, "LEAST_QUERIES", least)
    signature = MultiHeadSignature(attention, form="expanded")
    given = operands(signature, PLAIN_WEIGHTS)
    proto = model(signature, given, style=ONNX_RUNTIME)
    runtime = cases.session(proto)
    for query_len in (2, 5, 8, 15):
        feeds = operands(signature, PLAIN_WEIGHTS, query_len=query_len)
        assert_matches(runtime.run(None, feeds), signature, feeds)
        if "bias" in feeds:  # one row for all queries
            feeds["bias"] = feeds["bias"][:, :, 1:2]
            assert_matches(runtime.run(None, feeds), signature, feeds)


@pytest.mark.parametrize("past", [0, 5, 60])
@pytest.mark.parametrize(
    "attention", [each for each in cases.REDUCED_SIGNATURES if each.in_place], ids=cases.name
)
def test_rows_beyond_the_longest_sequence_are_left_out(attention, past):
    """Sequences of a buffer of 60 rows and more: nearly empty, and full."""
    signature = MultiHeadSignature(attention)
    feeds = operands(signature, PLAIN_WEIGHTS, query_len=1, past=60)
    proto = model(signature, feeds, style=ONNX_RUNTIME)
    runtime = cases.session(proto)
    for query_len in (1, 16):
        feeds = operands(signature, PLAIN_WEIGHTS, query_len=query_len, past=60)
        feeds["past_len"] = np.array([0, past // 2, past], np.int32)
        unread = past + query_len if attention.has_latent else max(past, 1)
        feeds["cache"][:, :, unread:] = 1e30
        assert_matches(runtime.run(None, feeds), signature, feeds)


@pytest.mark.parametrize(
    ("style", "blocks"), [(ONNX_RUNTIME, body_expanded.BLOCKS), (TENSORRT, 1)], ids=["ort", "trt"]
)
def test_no_softmax_has_the_scores_of_all_queries(style, blocks):
    """Where the runtime does not fuse attentions itself."""

    def count(form):
        signature = MultiHeadSignature(Signature(has_cache=True, bias="additive"), form=form)
        body = multi_head_function_body(signature, 18, style=style)
        return sum(node.op_type == "Softmax" for node in body.graph.all_nodes())

    assert count("expanded") - count("absorbed") == blocks


def test_one_token_is_absorbed_where_prompts_are_expanded():
    signature = MultiHeadSignature(Signature(has_cache=True), form="expanded")
    body = multi_head_function_body(signature, 18)
    (choice,) = (node for node in body if node.op_type == "If")
    assert choice.inputs[0].producer().op_type == "LessOrEqual"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("storage", SMALL_STORAGES)
def test_every_storage_matches_the_reference(storage, form):
    how, *types = SMALL_STORAGES[storage]
    signature = MultiHeadSignature(Signature(has_cache=True, causal=True), how, form)
    stored = weights(how, *types, SMALL_DIMS)
    feeds = operands(signature, stored)
    proto = model(signature, feeds, opset=21, constant=True)
    given = {name: feed for name, feed in feeds.items() if not name.startswith("kv_b")}
    assert_matches(cases.run(proto, given), signature, feeds)


@pytest.mark.parametrize("opset", [14, 15, 18, 23, 24])
@pytest.mark.parametrize("attention", cases.REDUCED_SIGNATURES, ids=cases.name)
def test_every_opset_matches_the_reference(attention, opset):
    how, *types = SMALL_STORAGES["packed4_zeros"]
    signature = MultiHeadSignature(attention, how)
    feeds = operands(signature, weights(how, *types, SMALL_DIMS))
    proto = model(signature, feeds, opset=opset, style=ONNX_RUNTIME)
    onnx.checker.check_model(proto, full_check=True)
    assert_matches(cases.run(proto, feeds), signature, feeds)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("opset", [14, 21])
@pytest.mark.parametrize(
    ("storage", "dtype"),
    [
        ("packed4_zeros", np.float32),
        ("fp8_e5m2", np.float32),
        ("float32", np.float32),
        ("float16", np.float32),
        ("packed4", np.float16),
    ],
)
def test_factors_of_columns_match_the_reference(storage, dtype, opset, form):
    if storage.startswith("fp8") and opset < 19:
        pytest.skip("no such type")
    how, *types = SMALL_STORAGES[storage]
    signature = MultiHeadSignature(Signature(has_cache=True), how, form, factors=True)
    stored = weights(how, *types, SMALL_DIMS) | factors(SMALL_DIMS)
    feeds = operands(signature, stored, dtype=dtype)
    assert_matches(cases.run(model(signature, feeds, opset=opset), feeds), signature, feeds)
    others = feeds | {"kv_b_factors": feeds["kv_b_factors"][::-1].copy()}
    with pytest.raises(AssertionError):
        assert_matches(cases.run(model(signature, feeds, opset=opset), others), signature, feeds)


@pytest.mark.parametrize("attention", cases.NARROW_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_narrow_caches_match_the_reference(attention, form):
    signature = MultiHeadSignature(attention, form=form)
    feeds = operands(signature, PLAIN_WEIGHTS)
    assert_matches(cases.run(model(signature, feeds), feeds), signature, feeds)


@pytest.mark.parametrize("attention", cases.QUANTIZED_SIGNATURES, ids=cases.name)
@pytest.mark.parametrize("form", FORMS)
def test_caches_of_codes_match_the_reference(attention, form):
    signature = MultiHeadSignature(attention, form=form)
    feeds = operands(signature, PLAIN_WEIGHTS)
    assert_matches(cases.run(model(signature, feeds, opset=19), feeds), signature, feeds)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("form", FORMS)
def test_other_types_of_queries(dtype, form):
    signature = MultiHeadSignature(Signature(has_cache=True, causal=True), PLAIN, form)
    feeds = operands(signature, weights(PLAIN, dtype, None, SMALL_DIMS), dtype=dtype)
    assert_matches(cases.run(model(signature, feeds), feeds), signature, feeds)


@pytest.mark.parametrize("query_len", [1, 40])
@pytest.mark.parametrize("storage", ["packed4_32_zeros", "fp8_128x128"])
def test_real_head_widths(storage, query_len):
    signature, feeds = real_operands(storage, query_len=query_len, past=10)
    proto = model(
        signature, feeds, geometry=V2_LITE, opset=21, scale=0.07, constant=True, style=ONNX_RUNTIME
    )
    given = {name: feed for name, feed in feeds.items() if not name.startswith("kv_b")}
    outputs = cases.run(proto, given)
    assert_matches(outputs, signature, feeds, geometry=V2_LITE, scale=0.07)
    assert REAL_STORAGES[storage][0] == signature.storage


def test_a_choice_of_forms_is_made_by_the_products():
    """C (N + V) / (2 C - N - V) = 48 / 4 = 12; on 40 rows, 12 * 40 / 52 = 9.2 new ones."""
    signature = MultiHeadSignature(Signature(has_cache=True))
    body = multi_head_function_body(signature, 18)
    (choice,) = (node for node in body if node.op_type == "If")
    assert choice.inputs[0].producer().op_type == "Reshape"
    proto = model(signature, operands(signature, PLAIN_WEIGHTS))
    inlined = onnx.inliner.inline_local_functions(proto)
    (choice,) = (node for node in inlined.graph.node if node.op_type == "If")
    inlined.graph.output.append(onnx.helper.make_tensor_value_info(choice.input[0], 9, []))
    runtime = cases.session(inlined)
    for query_len, absorbed in ((1, True), (9, True), (10, False), (30, False)):
        feeds = operands(signature, PLAIN_WEIGHTS, query_len=query_len, past=40 - query_len)
        *outputs, chosen = runtime.run(None, feeds)
        assert_matches(outputs, signature, feeds)
        assert bool(chosen) is absorbed


def test_a_wrong_scale_and_swapped_weights_show():
    signature = MultiHeadSignature(Signature(has_cache=True))
    feeds = operands(signature, PLAIN_WEIGHTS)
    wrong = cases.run(model(signature, feeds, scale=cases.SCALE * 1.01), feeds)
    with pytest.raises(AssertionError):
        assert_matches(wrong, signature, feeds)
    swapped = feeds | {"kv_b": feeds["kv_b"][::-1].copy()}
    with pytest.raises(AssertionError):
        assert_matches(cases.run(model(signature, feeds), swapped), signature, feeds)


def test_the_function_declares_the_contract():
    storage = Storage(bits=4, block_size=32, zero_points="packed")
    signature = MultiHeadSignature(Signature(has_cache=True, split=True), storage, factors=True)
    body = multi_head_function_body(signature, 21, "any")
    assert body.identifier() == ("mla_opt", "MultiHeadLatentAttention", "any")
    assert tuple(value.name for value in body.inputs) == signature.slots == INPUTS
    assert tuple(value.name for value in body.outputs) == OUTPUTS
    assert tuple(attribute.name for attribute in body.attributes.values()) == ATTRIBUTES


def test_an_opset_without_a_body_is_refused():
    with pytest.raises(InputError, match="no body for opset 13, only for 14 to 25"):
        multi_head_function_body(MultiHeadSignature(), 13)


@pytest.mark.parametrize("storage", SMALL_STORAGES)
@pytest.mark.parametrize("form", ["auto", *FORMS])
@pytest.mark.parametrize("style", [TENSORRT, ONNX_RUNTIME], ids=["plain", "adaptive"])
def test_no_attribute_is_an_empty_list(storage, form, style):
    """Tools that write a file anew, such as onnx-graphsurgeon, cannot tell its type."""
    given = weights(*SMALL_STORAGES[storage], SMALL_DIMS)
    signature = MultiHeadSignature(cases.ALL_SIGNATURES[0], form=form)
    proto = model(signature, operands(signature, given), style=style)
    bodies = [node for function in proto.functions for node in _nodes(function.node)]
    assert bodies
    lists = (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS)
    for node in bodies:
        for each in node.attribute:
            held = [*each.ints, *each.floats, *each.strings]
            assert held or each.ref_attr_name or each.type not in lists, (node.name, each.name)


def _nodes(nodes):
    for node in nodes:
        yield node
        for each in node.attribute:
            yield from _nodes(each.g.node)
