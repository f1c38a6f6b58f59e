"""The graphs of an engine against the model they were made from, by ONNX Runtime."""

from __future__ import annotations

import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.engines.precision import convert
from mla_opt.models import demo_model
from mla_opt.verification import verify
from mla_opt.verification.interface_map import InterfaceMap

PHASES = [("prefill", True), ("decode", True), ("decode", False)]


def lowered(phase: str, plugin: bool) -> mla_opt.OptimizeResult:
    return mla_opt.optimize(
        demo_model(), target="tensorrt", cache="static:64", phase=phase, plugin=plugin
    )


@pytest.mark.parametrize(("phase", "plugin"), PHASES)
def test_the_demo_model(phase, plugin):
    result = lowered(phase, plugin)
    assert result.model.opset_imports[""] == 24
    verification = result.report.verification
    assert verification["passed"]
    scenarios = [each["name"] for each in verification["scenarios"]]
    if phase == "prefill":
        assert scenarios == ["one sequence", "ragged batch", "one token"]
    else:
        assert {"prompt and decode", "chunk on a past"} <= set(scenarios)
    assert InterfaceMap.of(result.model).prompts_only == (phase == "prefill")


@pytest.mark.parametrize(("phase", "plugin"), PHASES)
def test_the_demo_model_in_float16(phase, plugin):
    model = lowered(phase, plugin).model
    caches = [v.name for v in model.graph.inputs if v.name.endswith("latent")]
    assert caches
    report = verify(demo_model(), convert(model, "float16", caches), tolerance=2e-2, controls=False)
    assert report.passed, report.failures


def test_a_wrong_prompt_graph_is_noticed():
    model = lowered("prefill", True).model
    (attention, *_) = (node for node in model.graph if node.op_type == "Attention")
    scale = attention.attributes["scale"].as_float()
    attention.attributes["scale"] = ir.AttrFloat32("scale", scale * 1.05)
    assert not verify(demo_model(), model).passed


def test_what_a_file_says_of_itself_must_be_a_truth_value():
    text = InterfaceMap(prompts_only=True).to_json()
    assert InterfaceMap.from_json(text).prompts_only
    with pytest.raises(mla_opt.InputError, match="prompts_only must be true or false"):
        InterfaceMap.from_json(text.replace('"prompts_only": true', '"prompts_only": 1'))
