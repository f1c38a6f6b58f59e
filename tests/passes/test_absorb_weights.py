from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

from mla_opt.errors import PassError
from tests.graphs.latent_block import Block, build
from tests.labels import label
from tests.passes.harness import (
    EXTRACT,
    FIND,
    assert_same,
    changed,
    graph_of,
    kinds,
    lines,
    prepared,
    run,
    tree,
    value,
)

ROWS = "Concat(present.0.keys, present.0.values)"
QUERY = "Concat(MatMul(q_parts_0.0, w_uk), q_pe_0)"


def absorbed(block: Block, absorb: str = "factored"):
    return prepared(block, "compress_cache", "absorb_weights", absorb=absorb)


def test_puts_w_uk_on_the_query_and_w_uv_on_the_output():
    graph = absorbed(Block())
    assert tree(graph.model, "context_0") == (
        f"MatMul(LatentAttention({QUERY}, {ROWS}, -, -, attention_mask), w_uv)"
    )


def test_nothing_else_changes():
    before = lines(build(Block(layers=2)))
    graph = absorbed(Block(layers=2))
    run(graph, "clean_up")
    gone, new = changed(before, lines(graph.model))
    assert all("/mla" in line for line in new)
    assert {line.split(" = ")[0] for line in gone} >= {"context_0", "context_1"}
    assert len(gone) == 2 * 13  # from the layer to the product with the values
    rest = [line for line in before if line not in gone]
    assert [line for line in lines(graph.model) if line in before] == rest


def test_the_expanded_keys_are_gone():
    graph = absorbed(Block())
    run(graph, "clean_up")
    assert kinds(graph.model)["Expand"] == 0
    assert kinds(graph.model)["Softmax"] == 0
    assert "model.layers.0.self_attn.kv_b_proj.weight" not in graph.model.graph.initializers


def test_the_operator_says_everything_it_needs():
    graph = absorbed(Block())
    (node,) = (each for each in graph.model.graph if each.op_type == "LatentAttention")
    assert node.domain == "mla_opt"
    assert node.attributes["scale"].value == pytest.approx(0.37)
    assert node.attributes["kv_lora_rank"].value == 12
    assert node.attributes["causal"].value == 0
    assert graph.model.opset_imports["mla_opt"] == 1
    assert node.op_identifier() in graph.model.functions


def test_the_interface_is_kept():
    graph = absorbed(Block())
    before = build(Block()).graph
    inputs, outputs = graph.model.graph.inputs, graph.model.graph.outputs
    assert [each.name for each in inputs] == [each.name for each in before.input]
    assert [each.name for each in outputs] == [each.name for each in before.output]
    assert [str(each.shape) for each in outputs] == ["[B,1,T,12]", "[B,1,T,4]", "[B,S,20]"]


def test_matrices_are_stored_in_the_type_of_the_query():
    graph = absorbed(Block(dtype="float16"))
    for name in ("w_uk", "w_uv"):
        stored = graph.model.graph.initializers[f"layers.0.self_attn/mla/{name}"]
        assert stored.const_value.numpy().dtype == np.float16


SEEING = (
    "Greater(ReduceMax(Where(Greater(attention_mask, blind_level), blind_1, blind_0), -1), blind_0)"
)
BIASED = f"Add(MatMul(LatentAttention({QUERY}, {ROWS}, -, -, attention_mask), w_uv), value_bias)"

TREES = {
    "no rotary part": (
        {"rope": 0},
        "MatMul(LatentAttention(MatMul(query_0, w_uk), present.0.keys, "
        "-, -, attention_mask), w_uv)",
    ),
    "dims in another order": (
        {"order": (*range(4, 12), *range(4))},
        "MatMul(LatentAttention(Concat(MatMul(Gather({q}, 4_5_6_7_8_9_10_11), w_uk), "
        f"Gather({{q}}, 0_1_2_3)), {ROWS}, -, -, attention_mask), w_uv)",
    ),
    "a value bias": (
        {"value_bias": True, "bias": None},
        f"Add(MatMul(LatentAttention({QUERY}, {ROWS}), w_uv), value_bias)",
    ),
    "a value bias for queries that see something": (
        {"value_bias": True},
        f"Where(Expand({SEEING}, Concat(1, 1, 1, Shape({BIASED}))), {BIASED}, blind_0)",
    ),
    "no mask": (
        {"bias": None},
        f"MatMul(LatentAttention({QUERY}, {ROWS}), w_uv)",
    ),
    "a boolean mask": (
        {"bias": "boolean"},
        f"MatMul(LatentAttention({QUERY}, {ROWS}, -, -, attention_mask_allowed), w_uv)",
    ),
    "a mask of what is blocked": (
        {"bias": "blocked"},
        f"MatMul(LatentAttention({QUERY}, {ROWS}, -, -, Not(attention_mask_blocked)), w_uv)",
    ),
    "a mask that fills with a number which swallows scores": (
        {"bias": "boolean", "fill": -1e35},
        f"MatMul(LatentAttention({QUERY}, {ROWS}, -, -, "
        "Where(attention_mask_allowed, attend, fill)), w_uv)",
    ),
    "two masks": (
        {"bias": "both"},
        f"MatMul(LatentAttention({QUERY}, {ROWS}, -, -, "
        "Where(attention_mask_allowed, attention_mask, never)), w_uv)",
    ),
    "sinks": (
        {"sink": True},
        f"MatMul(LatentAttention({QUERY}, {ROWS}, -, -, attention_mask, sink), w_uv)",
    ),
    "rows of rank 3": (
        {"row_rank": 3},
        f"MatMul(LatentAttention({QUERY}, Concat(Unsqueeze(present.0.keys, 1), "
        "Unsqueeze({r}, 1)), "
        "-, -, attention_mask), w_uv)",
    ),
}


@pytest.mark.parametrize(("options", "expected"), TREES.values(), ids=TREES)
def test_what_is_emitted(options, expected):
    graph = absorbed(Block(**options))
    query = graph.sites[0].core.query.name
    rope = graph.sites[0].rope
    expected = expected.replace("{q}", query).replace("{r}", rope.name if rope else "")
    assert tree(graph.model, "context_0") == expected


def test_query_fold():
    graph = absorbed(Block(), "fold-q")
    query = "Transpose(Reshape(MatMul(q_latent_0, w_uq_uk), 0_0_3_-1))"
    assert tree(graph.model, "context_0") == (
        f"MatMul(LatentAttention(Concat({query}, q_pe_0), {ROWS}, -, -, attention_mask), w_uv)"
    )
    run(graph, "clean_up")
    assert "model.layers.0.self_attn.q_b_proj.weight" not in graph.model.graph.initializers
    raw = tree(graph.model, "q_parts_0.1")
    assert raw == "Transpose(Reshape(MatMul(q_latent_0, w_uq_rope), 0_0_3_-1))"


def test_output_fold():
    graph = absorbed(Block(), "fold-o")
    rows = f"Transpose(LatentAttention({QUERY}, {ROWS}, -, -, attention_mask))"
    assert tree(graph.model, "hidden") == f"MatMul(Reshape({rows}, 0_0_-1), w_uv_o)"
    run(graph, "clean_up")
    assert "model.layers.0.self_attn.o_proj.weight" not in graph.model.graph.initializers


def test_not_absorbed_is_expanded_without_what_the_exporter_added():
    graph = absorbed(Block(keys="scatter"), "none")
    run(graph, "clean_up")
    counts = kinds(graph.model)
    assert (counts["ScatterND"], counts["LatentAttention"], counts["Softmax"]) == (0, 0, 1)
    assert graph.sites[0].query_value is None


def test_the_absorbed_query_is_known():
    graph = absorbed(Block())
    assert graph.sites[0].query_value.producer().op_type == "Concat"
    assert graph.sites[0].output is value(graph.model, "context_0")


NUMBERS = [
    ({}, "factored"),
    ({}, "fold-q"),
    ({}, "fold-o"),
    ({}, "fold"),
    ({"keys": "scatter"}, "none"),
    ({"bias": "both", "sink": True}, "none"),
    ({"bias": "both", "sink": True, "guarded": True}, "fold"),
    ({"bias": "blocked"}, "factored"),
    ({"bias": "blocked", "fill": -1e9}, "factored"),
    ({"bias": "boolean", "fill": float(np.finfo(np.float32).min)}, "none"),
    ({"bias": "boolean", "core": "fused", "opset": 23}, "factored"),
    ({"order": (0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11)}, "factored"),
    ({"order": (0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11)}, "none"),
    ({"value_bias": True, "storage": "dequantized"}, "fold-q"),
    ({"row_rank": 3, "storage": "gemm"}, "factored"),
    ({"scale_on": "key_heads", "rope": 0}, "fold"),
    ({"rope": 0, "q_lora": None}, "none"),
    ({"cache": "packed"}, "factored"),
    ({"layers": 2, "share": True}, "fold"),
]


@pytest.mark.parametrize(("options", "absorb"), NUMBERS, ids=label)
def test_numbers(options, absorb):
    block = Block(**options)
    graph = absorbed(block, absorb)
    assert graph.sites[0].form == absorb
    assert_same(block, graph.model, sizes=((2, 4, 3), (1, 5, 0)))


def test_numbers_in_half_precision():
    block = Block(dtype="float16")
    assert_same(block, absorbed(block).model, tolerance=1e-2)


def test_numbers_of_an_attention_that_computes_in_a_wider_type():
    """Its mask is in that type, yet the operator takes it in the query's."""

    def wide(tape, value):
        return tape("Cast", value, to=TensorProto.FLOAT)

    def masked(tape, scores):
        shape = (tape.block.batch, 1, tape.block.query_len, tape.block.total_len)
        return tape("Add", scores, wide(tape, tape.input("attention_mask", shape)))

    def narrow(tape, value):
        return tape("Cast", value, to=TensorProto.FLOAT16)

    edits = {"query": wide, "keys": wide, "values": wide, "scores": masked, "context": narrow}
    block = Block(dtype="float16", bias=None, scale_on="none", edits=edits)
    assert_same(block, absorbed(block).model, tolerance=1e-2)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (FIND, "layers.0.self_attn has no matrices; run extract_weights first"),
        (EXTRACT, "layers.0.self_attn caches expanded rows; run compress_cache first"),
    ],
)
def test_what_must_be_done_before(steps, message):
    graph = graph_of(Block(cache="expanded"))
    run(graph, *steps)
    with pytest.raises(PassError, match=message):
        run(graph, "absorb_weights")


@pytest.mark.parametrize("absorb", ["factored", "fold-q", "fold"])
def test_a_cache_of_the_querys_type_is_not_taken_for_a_narrow_one(absorb):
    """The toys note no types, as TorchScript's files do not; a folded query has none to inherit."""
    steps = ("compress_cache", "absorb_weights", "fuse_cache_append", "clean_up")
    graph = prepared(Block(), *steps, absorb=absorb)
    (node,) = (each for each in graph.model.graph if each.op_type == "LatentAttention")
    assert node.inputs[0].dtype == node.inputs[2].dtype
    assert "narrow" not in node.overload
