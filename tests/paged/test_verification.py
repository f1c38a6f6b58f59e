"""Models over packed tokens are verified like all others, and what is wrong is noticed."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.errors import InputError
from mla_opt.operator.paged_attention import INPUTS, OP_TYPE
from mla_opt.verification.interface_map import InterfaceMap
from mla_opt.verification.onnx.paged.packing import PackedCall
from tests.exports import kept
from tests.graphs.latent_block import Block, build
from tests.turned_mask import turned

CAUSAL = Block(bias="computed")
EXPORT = "deepseek_v3-dynamo-opset18-sdpa-cache-float16"


def lowered(block: Block, **options: Any) -> mla_opt.OptimizeResult:
    asked = {"cache_type": "bfloat16"} | options
    return mla_opt.optimize(build(block), target="onnxruntime-paged", **asked)


def test_a_result_is_verified_before_it_is_returned() -> None:
    report = lowered(Block(bias="computed", cache="packed"), absorb="factored").report
    assert report.verification is not None
    assert report.verification["passed"]
    assert report.verification["stand_in"] == OP_TYPE
    assert all(control["detected"] for control in report.verification["controls"])
    assert {site.cache_layout_after for site in report.sites} == {"paged"}
    assert any("was not run here" in note for note in report.notes)
    # as close as float32 is, whatever the rows are rounded to
    assert max(each["tolerance"] for each in report.verification["outputs"]) <= 2e-4
    assert [each["name"] for each in report.verification["drift"]["outputs"]]


@pytest.mark.parametrize("kind", ["keep", "int8"])
def test_an_export_with_experts_and_padding(kind: str, tmp_path) -> None:
    """What transformers exports: a mask of the caller, which goes; batches of unlike lengths."""
    path = tmp_path / "model.onnx"
    kept.unpack(EXPORT, path)
    result = mla_opt.optimize(path, target="onnxruntime-paged", cache_type=kind)
    assert result.report.verification is not None
    names = {each["name"] for each in result.report.verification["scenarios"]}
    assert {"prompt and decode", "ragged batch", "long past"} <= names
    interface = InterfaceMap.of(result.model)
    assert [(d.name, d.dtype) for d in interface.dropped] == [("attention_mask", "INT64")]
    why = {(c.after or c.before).name: c.why for c in result.report.interface_changes}  # type: ignore[union-attr]
    assert why["attention_mask"] == "no token is padding: those of all sequences are packed"
    assert why["input_ids"] == why["logits"] == "the tokens of all sequences are packed"
    assert why["block_table"] == "which blocks are whose"
    limit = (result.report.verification["drift"] or {}).get("limit")
    assert (limit is not None) == (kind != "keep")
    scales = [v.name for v in result.model.graph.inputs if str(v.name).endswith("_scale")]
    assert len(scales) == (0 if kind == "keep" else 2)


@pytest.mark.parametrize(("kind", "cached"), [("keep", "float16"), ("fp8", "float8_e4m3fn")])
def test_inspect_lists_the_operator(kind: str, cached: str) -> None:
    result = lowered(dataclasses.replace(CAUSAL, dtype="float16"), cache_type=kind, verify=False)
    (operator,) = mla_opt.inspect(result.model).operators
    assert (operator.operator, operator.cache, operator.cache_dtype) == (OP_TYPE, "paged", cached)
    assert (operator.num_heads, operator.dtype) == (CAUSAL.heads, "float16")
    assert (operator.kv_lora_rank, operator.qk_rope_head_dim) == (CAUSAL.latent, CAUSAL.rope)
    assert operator.form is not None, "the record of the site is told with it"


# Things to get wrong


def attribute(name: str, value: Any):
    def change(node: ir.Node) -> None:
        node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return change


def exchanged(first: str, second: str):
    def change(node: ir.Node) -> None:
        places = [INPUTS.index(name) for name in (first, second)]
        values = [node.inputs[place] for place in reversed(places)]
        for place, value in zip(places, values):
            node.replace_input_with(place, value)

    return change


def other_cache(node: ir.Node) -> None:
    """The cache of the other layer is read, and written."""
    graph = node.graph
    assert graph is not None
    caches = [v for v in graph.inputs if str(v.name).startswith("past.")]
    place = INPUTS.index("key_cache")
    mine = node.inputs[place]
    node.replace_input_with(place, next(each for each in caches if each is not mine))


WRONG = {
    "scale": attribute("scale", 0.25),
    "fewer values": attribute("v_head_size", 8),
    "past and ends": exchanged("past_seqlens", "cumulative_sequence_length"),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_noticed(change) -> None:
    block = Block(bias="computed", layers=2)
    source, model = build(block), lowered(block, verify=False).model
    assert mla_opt.verify(source, model, controls=False).passed
    for node in model.graph:
        if node.op_type == OP_TYPE:
            change(node)
            break
    assert not mla_opt.verify(source, model, controls=False).passed


def test_the_cache_of_another_layer_is_noticed() -> None:
    source = build(Block(bias="computed", layers=2))
    model = lowered(Block(bias="computed", layers=2), verify=False).model
    other_cache(next(node for node in model.graph if node.op_type == OP_TYPE))
    with pytest.raises(InputError, match="the model has no such pair of one rank and type"):
        mla_opt.verify(source, model)


def test_tokens_that_meet_are_noticed() -> None:
    """A graph that the lowering would refuse: the mean of all tokens is taken off."""
    source, model = build(CAUSAL), lowered(CAUSAL, verify=False).model
    (output,) = (v for v in model.graph.outputs if v.name == "hidden")
    axes = ir.node("Constant", [], {"value_ints": [1]})
    mean = ir.node("ReduceMean", [output, axes.outputs[0]], {"keepdims": 1})
    less = ir.node("Sub", [output, mean.outputs[0]])
    model.graph.extend([axes, mean, less])
    made = less.outputs[0]
    made.shape, made.type = output.shape, output.type
    output.name, made.name = "hidden_before", "hidden"
    model.graph.outputs[list(model.graph.outputs).index(output)] = made
    assert not mla_opt.verify(source, model, controls=False).passed


@pytest.mark.parametrize(
    "change",
    [attribute("softcap", 5.0), attribute("local_window_size", 3), attribute("is_causal", 0)],
    ids=["softcap", "window", "not causal"],
)
def test_a_node_of_another_meaning_is_refused(change) -> None:
    """Its definition is another than what would stand in for it."""
    model = lowered(CAUSAL, verify=False).model
    change(next(node for node in model.graph if node.op_type == OP_TYPE))
    with pytest.raises(InputError, match="is no PagedAttention as mla-opt writes it"):
        mla_opt.verify(build(CAUSAL), model)


def test_metadata_is_not_taken_on_trust() -> None:
    model = lowered(CAUSAL, verify=False).model
    text = model.metadata_props["mla_opt.interface"]
    for wrong, told in [
        ({"dropped": [{"name": "m", "dtype": "INT65", "sizes": []}]}, "no element type of ONNX"),
        ({"dropped": [{"name": "m", "dtype": "INT64", "sizes": [-1]}]}, "must be a list of sizes"),
        ({"dropped": 3}, "must be a list"),
    ]:
        with pytest.raises(InputError, match=told):
            InterfaceMap.from_json(json.dumps({**json.loads(text), **wrong}))
    mixed = json.loads(text)
    mixed["states"][0]["layout"] = "packed"
    mixed["dropped"] = [{"name": "m", "dtype": "INT64", "sizes": ["B", None, 3]}]
    with pytest.raises(InputError, match="drops inputs, but no layout is paged"):
        InterfaceMap.from_json(json.dumps(mixed))


def test_a_call_is_packed_and_unpacked() -> None:
    """Padded sequences of other lengths: what goes in comes back at its place, and zeros beside."""
    rng = np.random.default_rng(0)
    valid = np.arange(40)[None] >= np.asarray([[0], [39], [17]])
    call = PackedCall.of(valid, 4)
    feeds = call.feeds()
    assert feeds["cumulative_sequence_length"].tolist() == [0, 4, 5, 9]
    assert feeds["past_seqlens"].tolist() == [36, 0, 19]
    values = rng.standard_normal((3, 4, 5))
    packed = call.packed(values)
    assert packed.shape == (9, 5)
    again = call.padded(packed)
    np.testing.assert_array_equal(again, np.where(valid[:, -4:, None], values, 0))
    past = rng.standard_normal((3, 1, 36, 6)).astype(np.float32)
    rows = call.rows_of(call.blocks_of(past, past.dtype))
    np.testing.assert_array_equal(rows[:, 0, :36], np.where(valid[:, :36, None], past[:, 0], 0))
    slots = call.slots()
    assert len(set(slots[slots >= 0])) == valid.sum()


def test_a_session_on_the_cpu_says_who_runs_such_a_model() -> None:
    from mla_opt.runtimes.onnxruntime import session

    with pytest.raises(InputError, match="takes packed tokens, for PagedAttention, which only"):
        session(lowered(CAUSAL, verify=False).model)


def test_a_program_and_a_folder_have_no_packed_tokens(tmp_path) -> None:
    from mla_opt.folders import optimize_folder
    from mla_opt.options import Options
    from mla_opt.programs.program_options import program_options

    with pytest.raises(InputError, match="is not for PyTorch programs"):
        program_options(Options(target="onnxruntime-paged"))
    with pytest.raises(InputError, match="is not for folders, whose programs feed padded tokens"):
        optimize_folder(tmp_path, tmp_path / "out", target="onnxruntime-paged")


def test_a_mask_that_is_true_where_there_is_padding(tmp_path) -> None:
    path = turned(tmp_path / "model.onnx")
    result = mla_opt.optimize(path, target="onnxruntime-paged", cache_type="float16")
    assert [each.name for each in InterfaceMap.of(result.model).dropped] == ["key_padding_mask"]
    assert result.report.verification is not None
    names = {each["name"] for each in result.report.verification["scenarios"]}
    assert {"prompt and decode", "ragged batch"} <= names
