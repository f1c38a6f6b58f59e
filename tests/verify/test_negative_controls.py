from __future__ import annotations

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from mla_opt import optimize
from mla_opt.errors import InputError
from mla_opt.verification import verify
from mla_opt.verification.negative_controls import broken_models
from mla_opt.verification.onnx.breaking import BreakableOnnx
from mla_opt.verification.onnx.sessions import open_model
from mla_opt.verification.site_records import read_sites
from tests.graphs.latent_block import Block, build
from tests.verify import toys


def controls(**site):
    report = verify(toys.original(), toys.optimized(**site))
    return {control.name: control for control in report.controls}


def broken(model):
    graph = ir.from_proto(model)
    return {b.control.name: b for b in broken_models(BreakableOnnx(graph), read_sites(graph))}


@pytest.mark.parametrize(
    ("site", "control", "reason"),
    [
        ({"qk_rope_head_dim": 0}, "rope", "R = 0"),
        ({"qk_rope_head_dim": 1}, "rope", "R = 1"),
        ({"w_uk": None}, "heads", "folded"),
        ({"scale": 1 / toys.ROW**0.5}, "scale", "1/sqrt"),
    ],
)
def test_a_control_that_does_not_apply_says_why(site, control, reason):
    found = controls(**site)
    assert not found[control].applicable
    assert reason in found[control].reason
    assert all(other.detected for name, other in found.items() if name != control)


def test_one_head_has_no_neighbour():
    value = toys.weights()["w_uk"][:1]
    found = broken(toys.with_initializer(toys.optimized(), "w_uk", value))["heads"]
    assert found.model is None
    assert "one head" in found.reason


def test_without_records_no_control_applies():
    report = verify(toys.original(), toys.original())
    assert report.passed
    assert [c.applicable for c in report.controls] == [False] * 3


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"query": "nowhere"}, "names query 'nowhere'"),
        ({"w_uk": "nowhere"}, "names w_uk 'nowhere'"),
        ({"w_uk": "w_q"}, "names w_uk 'w_q'"),
        ({"query": "input_ids"}, "names query 'input_ids'"),
    ],
)
def test_a_record_of_what_is_not_there_is_refused(site, message):
    with pytest.raises(InputError, match=message):
        controls(**site)


def test_the_optimized_model_itself_stays_as_it_was():
    model = ir.from_proto(toys.optimized())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    every = broken_models(BreakableOnnx(model), read_sites(model))
    assert all(b.model is not None for b in every)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def query_of(model):
    """The query as the attention of a model reads it, for made-up inputs."""
    reader = next(n for n in model.graph if n.op_type == "MatMul" and n.outputs[0].name == "scores")
    proto = ir.to_proto(model)
    proto.graph.output.append(helper.make_empty_tensor_value_info(reader.inputs[0].name))
    feeds = {
        "input_ids": np.asarray([[3, 8]]),
        "attention_mask": np.ones((1, 2), np.int64),
        "past_0_keys": np.zeros((1, 1, 0, toys.LATENT), np.float32),
        "past_0_values": np.zeros((1, 1, 0, toys.ROPE), np.float32),
    }
    return open_model(proto, "test").session(optimized=False).run(feeds)[reader.inputs[0].name]


def test_each_control_breaks_what_it_says():
    optimized = toys.optimized()
    right = query_of(ir.from_proto(optimized))
    wrong = {name: query_of(b.model.model) for name, b in broken(optimized).items()}
    ratio = 1 / np.sqrt(toys.ROW) / toys.SCALE
    assert wrong["scale"] == pytest.approx(right * ratio, rel=1e-5)
    halves = np.concatenate([right[..., 13:], right[..., 11:13]], axis=-1)
    assert wrong["rope"] == pytest.approx(np.concatenate([right[..., :11], halves], axis=-1))
    assert np.array_equal(wrong["heads"][..., 11:], right[..., 11:])
    rolled = toys.with_initializer(optimized, "w_uk", np.roll(toys.weights()["w_uk"], 1, axis=0))
    assert np.array_equal(wrong["heads"], query_of(ir.from_proto(rolled)))


def in_a_branch(model):
    """The same model with its attention in the `else` of an `If` on the query length."""
    names = ["q_nope", "q_c", "absorbed_query", "rows", "rows_t", "scores", "scaled", "biased", "p",
             "latent_context", "context"]  # fmt: skip
    inner = [n for n in model.graph.node if n.output[0] in names]
    graph = onnx.GraphProto(name="absorbed", node=inner)
    graph.output.append(helper.make_tensor_value_info("context", onnx.TensorProto.FLOAT, None))
    long = onnx.GraphProto()
    long.CopyFrom(graph)
    text = toys.text(toys.SPLIT, toys.EXPANDING)
    expanding = list(onnx.parser.parse_model(text).graph.node)
    start = next(i for i, n in enumerate(expanding) if n.output[0] == "k_nope")
    stop = next(i for i, n in enumerate(expanding) if n.output[0] == "context") + 1
    del long.node[:], long.output[:]
    for node in expanding[start:stop]:
        node.input[:] = [f"long_{i}" if i in {"k_nope", "k_pe", "k", "v", "k_t", "scores", "scaled",
                         "biased", "p"} else i for i in node.input]  # fmt: skip
        node.output[:] = [f"long_{o}" for o in node.output]
        long.node.append(node)
    long.output.append(helper.make_tensor_value_info("long_context", onnx.TensorProto.FLOAT, None))
    branch = helper.make_node("If", ["is_long"], ["chosen"], then_branch=long, else_branch=graph)
    test = [
        helper.make_node("Squeeze", ["query_len"], ["query_count"]),
        helper.make_node("Greater", ["query_count", "threshold"], ["is_long"]),
    ]
    after = next(i for i, n in enumerate(model.graph.node) if n.output[0] == "bias") + 1
    outer = [n for n in model.graph.node if n.output[0] not in names]
    at = next(i for i, n in enumerate(outer) if n.output[0] == "bias") + 1
    assert at <= after
    for node in outer:
        node.input[:] = ["chosen" if i == "context" else i for i in node.input]
    del model.graph.node[:]
    model.graph.node.extend([*outer[:at], *test, branch, *outer[at:]])
    used = {i for n in expanding for i in n.input}
    have = {t.name for t in model.graph.initializer}
    for name, value in toys.weights().items():
        if name in used - have:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(20), "threshold"))
    return model


def test_controls_reach_into_branches():
    report = verify(toys.original(), in_a_branch(toys.optimized()))
    assert report.passed, report.failures
    assert all(control.detected for control in report.controls)


@pytest.mark.parametrize("threshold", [21, None, 10**9])
def test_the_expanded_branch_is_run_whatever_the_record_says(threshold):
    wrong = toys.with_initializer(
        in_a_branch(toys.optimized(prefill_threshold=threshold)),
        "w_uk_t",
        toys.weights()["w_uk_t"] * 2,
    )
    report = verify(toys.original(), wrong, controls=False)
    assert {s.scenario.name for s in report.scenarios if not s.passed} == {"long prompt"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("absorb", ["auto", "fold"])
def test_controls_of_an_opset_without_cast_like(dtype, absorb):
    block = Block(opset=14, dtype=dtype)
    report = optimize(build(block), absorb=absorb).report
    found = {control["name"]: control for control in report.verification["controls"]}
    assert found["scale"]["detected"]


def test_several_sites_are_broken_at_once():
    model = toys.optimized()
    model.metadata_props[0].value = json.dumps([toys.site(), toys.site(name="second", w_uk=None)])
    found = broken(model)
    assert (found["scale"].sites, found["heads"].sites) == (2, 1)
