"""Models are verified layer by layer, and what differs anywhere is noticed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.errors import InputError
from mla_opt.graphs.interface.interface import ModelInterface
from mla_opt.models import demo_model
from mla_opt.verification import ControlResult, Scenario, ScenarioParity, verify_by_layer
from mla_opt.verification.by_layer import _both, _parts, _worse
from mla_opt.verification.feeds import Timeline
from mla_opt.verification.onnx.layers.content import node_key
from tests.end_to_end.command import command
from tests.exports.cache import kept_export
from tests.graphs.latent_block import Block, build

EXPORTS = (
    ("deepseek_v3-dynamo-opset18-sdpa-cache-float16", "keep"),
    ("deepseek_v3-torchscript-opset18-sdpa-cache", "static"),
)
OTHERS = [
    pytest.param(name, cache, marks=pytest.mark.sweep)
    for name in (
        *(name for name, _ in EXPORTS),
        "deepseek_v3-dynamo457-opset18-sdpa-cache",
        "deepseek_v3-optimum457-opset18-sdpa-cache",
        "hy_v4-dynamo-opset18-eager-cache",
        "glm4_moe_lite-dynamo-opset24-sdpa-cache",
    )
    for cache in ("keep", "static")
    if (name, cache) not in EXPORTS
]


def optimized(source: Any, **options: Any) -> ir.Model:
    return mla_opt.optimize(source, verify=False, **options).model


@pytest.mark.parametrize(("name", "cache"), [*EXPORTS, *OTHERS])
def test_an_export(name: str, cache: str) -> None:
    source = kept_export(name)
    report = verify_by_layer(source, optimized(source, cache=cache))
    assert report.passed, report.failures
    assert report.layers == 2
    assert {each.name for each in report.controls if each.detected} == {"scale", "rope", "heads"}
    assert "the 2 parts that differ were run" in report.note


def test_a_query_that_comes_from_outside_of_the_layer() -> None:
    """No input of the layer says which axes count tokens: it is not fed with ones for that."""
    source = build(Block())
    report = verify_by_layer(source, optimized(source))
    assert report.passed, report.failures
    assert {control.name for control in report.controls if control.detected} == {
        "scale", "rope", "heads",
    }  # fmt: skip
    (part,) = _parts(source, optimized(source))
    called = Timeline.of(2, 5, (0, 1), 3).call(ModelInterface.of(part.before), 0, 5)
    given = {name: fed for name, fed in called.items() if name.startswith("hidden.")}
    assert len(given) == 3
    assert all(len(np.unique(fed)) == fed.size for fed in given.values())


@pytest.mark.parametrize(
    "options",
    [
        {"target": "portable", "prefill": "absorbed"},
        {"absorb": "fold", "cache": "even"},
        {"cache": "static:64", "cache_type": "bfloat16"},
        {"cache": "packed", "cache_type": "int8"},
    ],
    ids=str,
)
def test_every_way_to_optimize(options: Mapping[str, str]) -> None:
    report = verify_by_layer(demo_model(), optimized(demo_model(), **options))
    assert report.passed, report.failures
    assert report.layers == 2


@pytest.mark.parametrize("block", [Block(layers=3), Block(layers=2, share=True, cache="packed")])
def test_at_the_widths_of_released_models(block: Block) -> None:
    widths = {"nope": 128, "rope": 64, "value": 128, "latent": 512}
    source = build(dataclasses.replace(block, scale=0.07, guarded=True, **widths))  # type: ignore[arg-type]
    report = verify_by_layer(source, optimized(source, cache="static"))
    assert report.passed, report.failures
    assert all(control.detected for control in report.controls)
    assert report.layers == (1 if block.share else block.layers)


def changed_weight(model: ir.Model) -> None:
    """One number of a layer that is no attention."""
    change_tensor(model, "mlp")


def change_tensor(model: ir.Model, word: str, place: int = 0) -> None:
    value = next(v for name, v in model.graph.initializers.items() if word in name)
    assert value.const_value is not None
    numbers = value.const_value.numpy().copy()
    numbers.reshape(-1)[place] += 1
    value.const_value = ir.tensor(numbers, name=value.name)


def other_operator(model: ir.Model) -> None:
    """One activation is another."""
    node = next(node for node in model.graph if node.op_type == "Sigmoid")
    node.op_type = "Tanh"


def other_attribute(model: ir.Model) -> None:
    """The scale of the second attention."""
    node = [node for node in model.graph if node.domain == "mla_opt"][-1]
    node.attributes["scale"] = ir.AttrFloat32("scale", 0.5)


def caches_swapped(model: ir.Model) -> None:
    """The first layer returns the second one's rows."""
    by_name = {value.name: value for value in model.graph.outputs}
    one, other = by_name["present.0.keys"], by_name["present.1.keys"]
    one.name, other.name = "swapped", "present.0.keys"
    one.name = "present.1.keys"


def another_input(model: ir.Model) -> None:
    """The second attention reads the query of the first."""
    first, second = [node for node in model.graph if node.domain == "mla_opt"]
    second.replace_input_with(0, first.inputs[0])


def last_layer_skipped(model: ir.Model) -> None:
    """A residual is added to itself."""
    node = [node for node in model.graph if node.op_type == "Add"][-1]
    node.replace_input_with(1, node.inputs[0])


CHANGES = (
    changed_weight,
    other_operator,
    other_attribute,
    caches_swapped,
    another_input,
    last_layer_skipped,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_anywhere_is_noticed(change: Callable[[ir.Model], None]) -> None:
    model = optimized(demo_model())
    change(model)
    try:
        report = verify_by_layer(demo_model(), model)
    except InputError:
        return
    assert not report.passed


def test_weights_of_an_attention() -> None:
    model = optimized(demo_model())
    change_tensor(model, "kv_b")
    report = verify_by_layer(demo_model(), model)
    assert not report.passed
    assert len([output for output in report.outputs if not output.passed]) == 1


def written(
    nodes: list[tuple[str, list[str], str]], *outputs: str, opset: int = 18
) -> onnx.ModelProto:
    """A model of ``inputs_embeds [B, S, 4]``; nodes are an operator, operands and a result."""
    made = [onnx.helper.make_node(kind, operands, [result]) for kind, operands, result in nodes]
    names = ("inputs_embeds", *outputs)
    ends = [onnx.helper.make_tensor_value_info(name, 1, ["B", "S", 4]) for name in names]
    graph = onnx.helper.make_graph(made, "g", ends[:1], ends[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


def test_values_that_rest_on_each_other() -> None:
    """``y`` is made of ``x`` in one model, and ``x`` of ``y`` in the other."""

    def model(first: str, second: str) -> onnx.ModelProto:
        steps = [("Tanh", ["inputs_embeds"], first), ("Sin", [first], second)]
        return written([*steps, ("Add", ["x", "y"], "out")], "out")

    with pytest.raises(InputError, match="in another order"):
        verify_by_layer(model("x", "y"), model("y", "x"))


def test_what_is_to_be_shown_is_not_given() -> None:
    """``b`` is the same where ``a`` is, and both are made by one node, which is another."""

    def model(kind: str, name: str) -> onnx.ModelProto:
        steps = [
            (kind, ["inputs_embeds"], name),
            ("Neg", [name], "a"),
            ("Sub", [name, name], f"nothing_{name}"),
            ("Add", [f"nothing_{name}", "a"], "b"),
        ]
        return written(steps, "a", "b")

    report = verify_by_layer(model("Tanh", "m"), model("Sin", "n"))
    assert {output.name for output in report.outputs if not output.passed} == {"a", "b"}


def test_operators_of_two_opsets_are_two() -> None:
    """Up to opset 12 the softmax is that of all axes behind the first."""
    one, other = (
        written([("Softmax", ["inputs_embeds"], "out")], "out", opset=opset) for opset in (12, 13)
    )
    assert not verify_by_layer(one, other).passed
    steps = [("Tanh", ["inputs_embeds"], "mid"), ("Sin", ["mid"], "out")]
    alike, same = (written(steps, "out", opset=opset) for opset in (17, 18))
    with pytest.raises(InputError, match="operator by operator"):
        verify_by_layer(alike, same)


def test_a_body_that_was_changed() -> None:
    """Both models call a function of one name, which does something else in one of them."""
    before, after = optimized(demo_model()), optimized(demo_model())
    function = next(iter(after.functions.values()))
    softmax = next(node for node in function.all_nodes() if node.op_type == "Softmax")
    softmax.op_type = "Hardmax"
    assert not verify_by_layer(before, after).passed


def with_default(number: float) -> onnx.ModelProto:
    """An input that nobody has to give, as it has a content."""
    model = written([("Mul", ["inputs_embeds", "factor"], "out")], "out")
    model.graph.input.append(onnx.helper.make_tensor_value_info("factor", 1, [1]))
    model.graph.initializer.append(onnx.helper.make_tensor("factor", 1, [1], [number]))
    return model


def test_another_default_of_an_input() -> None:
    with pytest.raises(InputError, match="operator by operator"):
        verify_by_layer(with_default(2.0), with_default(2.0))
    assert not verify_by_layer(with_default(2.0), with_default(3.0)).passed


@pytest.mark.parametrize("kind", ["Neg", "Abs"])
def test_sizes_of_what_is_to_be_shown(kind: str) -> None:
    """A size that is assumed is read off a value that is itself to be shown."""

    def model(name: str, last: str) -> onnx.ModelProto:
        steps = [
            ("Tanh" if name == "m" else "Sin", ["inputs_embeds"], name),
            (last, [name], "a"),
            ("Shape", ["a"], f"shape_{name}"),
            ("Identity" if name == "m" else "Abs", [f"shape_{name}"], "wanted"),
            ("Expand", ["a", "wanted"], "out"),
        ]
        return written(steps, "out")

    report = verify_by_layer(model("m", "Neg"), model("n", kind))
    assert not report.passed


def test_a_size_that_differs() -> None:
    """All that computes with data is the same; how large a factor is, is not."""

    def model(kind: str) -> onnx.ModelProto:
        steps = [
            ("Shape", ["inputs_embeds"], "dims"),
            (kind, ["dims"], "count"),
            ("CastLike", ["count", "inputs_embeds"], "factor"),
            ("Mul", ["inputs_embeds", "factor"], "out"),
        ]
        return written(steps, "out")

    report = verify_by_layer(model("ReduceMax"), model("ReduceMin"))
    assert [output.name for output in report.outputs if not output.passed] == ["count"]


def test_values_of_one_name_and_two_shapes_are_two() -> None:
    one = written([("Neg", ["inputs_embeds"], "mid"), ("Neg", ["mid"], "out")], "out")
    steps = [("Transpose", ["inputs_embeds"], "mid"), ("Transpose", ["mid"], "out")]
    report = verify_by_layer(one, written(steps, "out"))
    assert report.passed, report.failures
    assert [output.name for output in report.outputs] == ["out"]


def test_controls_where_a_part_begins_with_the_query() -> None:
    source = build(Block(layers=2))
    report = verify_by_layer(source, optimized(source, cache="static"))
    assert report.layers == 2
    assert {each.name for each in report.controls if each.detected} == {"scale", "rope", "heads"}


def control(**given: Any) -> ControlResult:
    return ControlResult("scale", "the scale", **{"applicable": True, "detected": True, **given})


def test_controls_of_all_layers_are_one() -> None:
    strong, weak = control(relative=0.9, sites=1), control(relative=0.1, sites=2)
    for pair in ((strong, weak), (weak, strong)):
        joined = _worse(*pair)
        assert (joined.relative, joined.sites) == (0.1, 3)
    missed, no_site = control(detected=False), control(applicable=False, detected=False)
    assert _worse(strong, missed) == _worse(missed, strong) == missed
    assert _worse(strong, no_site) == _worse(no_site, strong) == strong


def test_scenarios_of_all_layers_are_one() -> None:
    scenario = Scenario("steps", 1, (1,), (0,))
    ran, failed = ScenarioParity(scenario, ()), ScenarioParity(scenario, (), error="no")
    skipped = ScenarioParity(scenario, (), skipped="too long")
    assert _both(ran, failed).error == _both(failed, ran).error == "no"
    assert _both(ran, skipped).skipped is _both(skipped, ran).skipped is None
    assert _both(skipped, skipped).skipped == "too long"


def test_tensors_in_branches_count_by_their_content(tmp_path: Path) -> None:
    """Both lie in a file of one name, in two folders."""
    keys = []
    for number in (1.0, 2.0):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "data").write_bytes(np.full(4, number, np.float32).tobytes())
        stored = ir.ExternalTensor(
            "data", 0, 16, ir.DataType.FLOAT, shape=ir.Shape([4]), name="w", base_dir=folder
        )
        value = ir.Value(name="w", const_value=stored)
        body = ir.node("Neg", [value])
        branch = ir.Graph([], body.outputs, nodes=[body], initializers=[value])
        graphs = {name: ir.AttrGraph(name, branch) for name in ("then_branch", "else_branch")}
        node = ir.node("If", [ir.Value(name="c")], graphs)
        graph = ir.Graph([], [], nodes=[node], opset_imports={"": 18})
        keys.append(node_key(ir.Model(graph, ir_version=10), node))
    assert keys[0] != keys[1]


def test_a_model_and_itself() -> None:
    with pytest.raises(InputError, match="operator by operator"):
        verify_by_layer(demo_model(), demo_model())


def test_models_that_do_not_fit_are_verified_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mla_opt.optimize(demo_model()).report.verification["layers"] == 0  # type: ignore[index]
    monkeypatch.setattr("mla_opt.verification.extent.available", lambda: 10_000)
    verification = mla_opt.optimize(demo_model()).report.verification
    assert verification is not None
    assert (verification["layers"], verification["passed"]) == (2, True)
    monkeypatch.setattr("mla_opt.verification.extent.verify_by_layer", refuse)
    with pytest.raises(InputError, match="0 GB are free, and layer by layer: not today"):
        mla_opt.optimize(demo_model())


@pytest.mark.parametrize("kind", ["float16", pytest.param("bfloat16", marks=pytest.mark.sweep)])
def test_rounded_caches_of_a_model_with_experts(kind: Any) -> None:
    """Whole, it sends tokens to other experts, and nothing can be told from that."""
    result = mla_opt.optimize(demo_model(), cache="static", cache_type=kind)
    assert (result.report.verification or {})["layers"] == 2
    result = mla_opt.optimize(build(Block()), cache="static", cache_type=kind)
    assert (result.report.verification or {})["layers"] == 0, "it has no experts"


def refuse(*_: Any, **__: Any) -> None:
    raise InputError("not today")


def test_a_word_that_there_is_not() -> None:
    with pytest.raises(InputError, match="'layers' is none of True, False, 'auto'"):
        mla_opt.optimize(demo_model(), verify="layers")  # type: ignore[arg-type]
    assert mla_opt.optimize(demo_model(), verify="whole").report.verification is not None
    assert mla_opt.optimize(demo_model(), verify=False).report.verification is None


def test_the_command(tmp_path: Path) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = command(
        "optimize", demo_model(), "-o", out, "--verify-by-layer", "--report", report, "--quiet"
    )
    assert done.returncode == 0, done.stderr
    repeated = command("verify", "--from-report", report)
    assert repeated.returncode == 0, repeated.stderr
    assert "the proof's numbers are those of the report" in repeated.stdout + repeated.stderr
    done = command("verify", demo_model(), out, "--by-layer")
    assert "layers.1" not in done.stderr
    assert done.returncode == 0
    assert "verified layer by layer" in done.stdout + done.stderr
    done = command("optimize", demo_model(), "-o", out, "--no-verify", "--verify-by-layer")
    assert done.returncode == 2
