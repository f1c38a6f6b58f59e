"""The node and its interface, against what ONNX Runtime says of the operator; what is refused."""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

import mla_opt
from mla_opt.errors import InputError, RefusedError
from mla_opt.operator.paged_attention import (
    CALL,
    CODES,
    DOMAIN,
    INPUTS,
    OP_TYPE,
    TYPES,
    PagedSignature,
)
from tests.graphs.latent_block import Block, Tape, build

SCHEMA = next(
    (s for s in runtime.get_all_operator_schema() if (s.domain, s.name) == (DOMAIN, OP_TYPE)), None
)
IS_LATENT = SCHEMA is not None and "kv_cache_layout" in SCHEMA.attributes
needs_schema = pytest.mark.skipif(
    not IS_LATENT, reason="this ONNX Runtime has no PagedAttention for latent rows"
)
BLOCK = Block(bias="computed", layers=2)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    source = build(BLOCK)
    options = {"target": "onnxruntime-paged", "cache_type": "float16", "verify": False}
    return mla_opt.optimize(source, **options).model


def allowed(name: str) -> set[str]:
    """Element types of a constraint."""
    (found,) = [t for t in SCHEMA.type_constraints if t.type_param_str == name]
    return {each.removeprefix("tensor(").removesuffix(")") for each in found.allowed_type_strs}


@needs_schema
@pytest.mark.parametrize("quantized", [False, True])
def test_inputs_and_attributes_are_those_of_the_schema(quantized: bool) -> None:
    assert tuple(each.name for each in SCHEMA.inputs)[: len(INPUTS)] == INPUTS
    given = PagedSignature(16, 512, 0.1, quantized).attributes()
    kinds = {int: "INT", float: "FLOAT", str: "STRING"}
    for name, value in given.items():
        assert str(SCHEMA.attributes[name].type).endswith(kinds[type(value)])
    required = {name for name, each in SCHEMA.attributes.items() if each.required}
    assert required <= set(given)
    assert [each.name for each in SCHEMA.outputs][:2] == ["output", "key_cache_out"]


@needs_schema
def test_types_are_those_of_the_schema() -> None:
    assert set(TYPES) == allowed("T")
    assert {*TYPES, *(code.replace("_", "") for code in CODES)} <= allowed("T_CACHE")
    assert allowed("S") == {"int32"}
    assert allowed("T_KV_SCALE") == {"float"}


def test_the_interface_of_packed_tokens(model: ir.Model) -> None:
    inputs = {v.name: (v.dtype.name.lower(), str(v.shape)) for v in model.graph.inputs}
    cache = ("float16", "[num_blocks,block_size,1,16]")
    assert inputs == {
        "inputs_embeds": ("float", "[1,num_tokens,20]"),
        "position_ids": ("int64", "[1,num_tokens]"),
        "past.0.latent": cache,
        "past.1.latent": cache,
        "cumulative_sequence_length": ("int32", "[num_sequences + 1]"),
        "past_seqlens": ("int32", "[num_sequences]"),
        "block_table": ("int32", "[num_sequences,max_blocks_per_sequence]"),
        "slot_mapping": ("int32", "[num_tokens]"),
    }
    assert {v.name: str(v.shape) for v in model.graph.outputs} == {
        "hidden": "[1,num_tokens,20]",
        "present.0.latent": cache[1],
        "present.1.latent": cache[1],
    }


def test_one_node_a_layer_and_nothing_of_ours(model: ir.Model) -> None:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [n.op_type for n in proto.graph.node].count(OP_TYPE) == BLOCK.layers
    assert {n.domain for n in proto.graph.node} == {"", DOMAIN}
    assert not proto.functions
    for node in (n for n in proto.graph.node if n.op_type == OP_TYPE):
        given = dict(zip(INPUTS, node.input, strict=False))
        assert {name for name, value in given.items() if value} == {
            "query", "key", "key_cache", *CALL
        }  # fmt: skip
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["scale"] == pytest.approx(BLOCK.scale)


def test_a_name_that_is_taken() -> None:
    source = build(BLOCK)
    for info in source.graph.input:
        if info.name == "position_ids":
            info.name = "slot_mapping"
    for node in source.graph.node:
        for place, name in enumerate(node.input):
            if name == "position_ids":
                node.input[place] = "slot_mapping"
    with pytest.raises(mla_opt.InputError, match="an input called 'slot_mapping' already"):
        mla_opt.optimize(source, target="onnxruntime-paged", cache_type="float16")


# What cannot be packed


def refused(block: Block, **options: Any) -> str:
    asked = {"cache_type": "float16"} | options
    with pytest.raises(RefusedError) as error:
        mla_opt.optimize(build(block), target="onnxruntime-paged", verify=False, **asked)
    return str(error.value)


def last_token(tape: Tape, value: str) -> str:
    return tape("Slice", value, tape.ints(-1), tape.ints(1 << 40), tape.ints(1))


def averaged(tape: Tape, value: str) -> str:
    return tape("Sub", value, tape("ReduceMean", value, tape.ints(1), keepdims=1))


def counted(tape: Tape, value: str) -> str:
    """Times the number of tokens in the cache."""
    past = tape("Cast", tape("Shape", "past.0.keys", start=2, end=3), to=tape.kind)
    return tape("Mul", value, past)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"edits": {"flat": last_token}}, "Slice): it takes some of the tokens, such as the last"),
        ({"edits": {"flat": averaged}}, "ReduceMean): it works along the axis of the tokens"),
        ({"edits": {"flat": counted}}, "follows from how many tokens there are"),
        ({"query_len": 1}, "takes 1 tokens a call, and no others"),
        ({"past_len": 7}, "takes a past of 7 tokens, and no other"),
        ({"cache": "none"}, "needs a cache of latent rows that grows: it has none"),
        ({"latent": 11, "rope": 4}, "takes rows of a multiple of 8 numbers, not 15"),
        ({"sink": True}, "PagedAttention has no sinks for latent rows"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(next(iter(value))),
)
def test_models_that_cannot_be_packed(options: dict[str, Any], told: str) -> None:
    assert told in refused(Block(bias="computed", **options))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cache_type": "keep"}, r"computes in 16 bits, and the model in float32; ask for cache"),
        ({"cache_type": "int8"}, r"the model in float32, so no int8 can be had"),
    ],
)
def test_types_that_the_operator_has_not(options: dict[str, Any], told: str) -> None:
    assert told in refused(Block(bias="computed"), **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cache": "packed"}, "cache packed is not for target onnxruntime-paged"),
        ({"absorb": "none"}, "target onnxruntime-paged needs absorbed attention"),
        ({"prefill": "expanded"}, "prefill expanded is not for target onnxruntime-paged"),
        ({"weights": "keep"}, "weights keep is for target onnxruntime, not onnxruntime-paged"),
        ({"verify": "by-layer", "cache_type": "float16"}, "cannot be verified by layer"),
    ],
)
def test_options_that_it_has_not(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        mla_opt.optimize(build(Block(bias="computed")), target="onnxruntime-paged", **options)


def test_another_attention_is_none_of_tokens_by_themselves() -> None:
    """A layer that is not latent brings tokens together, and is not lowered."""

    def attended(tape: Tape, value: str) -> str:
        scores = tape("MatMul", value, tape("Transpose", value, perm=[0, 2, 1]))
        return tape("MatMul", tape("Softmax", scores, axis=-1), value)

    assert "it multiplies tokens with each other" in refused(
        Block(bias="computed", edits={"projected": attended})
    )
