"""The graphs of an engine against the model they were made from, by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.engines.precision import convert
from mla_opt.models import demo_model
from mla_opt.verification import verify
from mla_opt.verification.interface_map import InterfaceMap
from tests.engines.token_model import token_model

GRAPHS = [("prefill", "demo"), ("decode", "demo"), ("decode", "wide")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """The demo model, and one with the widths of DeepSeek-V2-Lite, which the plugin runs."""
    wide = token_model(tmp_path_factory.mktemp("wide") / "wide.onnx")
    return {"demo": demo_model(), "wide": wide}


def lowered(source: Path, phase: str) -> mla_opt.OptimizeResult:
    return mla_opt.optimize(source, target="tensorrt", cache="static:64", phase=phase)


@pytest.mark.parametrize(("phase", "name"), GRAPHS)
def test_the_graphs_of_a_model(phase, name, sources):
    result = lowered(sources[name], phase)
    assert result.model.opset_imports[""] == 24
    operators = {node.op_type for node in result.model.graph}
    assert ("LatentAttention" in operators) == (name == "wide")
    verification = result.report.verification
    assert verification["passed"]
    scenarios = [each["name"] for each in verification["scenarios"]]
    if phase == "prefill":
        assert scenarios == ["one sequence", "ragged batch", "one token"]
    else:
        assert {"prompt and decode", "chunk on a past"} <= set(scenarios)
    assert InterfaceMap.of(result.model).prompts_only == (phase == "prefill")


@pytest.mark.parametrize(("phase", "name"), GRAPHS)
def test_the_graphs_in_float16(phase, name, sources):
    model = lowered(sources[name], phase).model
    caches = [v.name for v in model.graph.inputs if v.name.endswith("latent")]
    assert caches
    report = verify(
        sources[name], convert(model, "float16", caches), tolerance=2e-2, controls=False
    )
    assert report.passed, report.failures


def test_a_wrong_prompt_graph_is_noticed():
    model = lowered(demo_model(), "prefill").model
    (attention, *_) = (node for node in model.graph if node.op_type == "Attention")
    scale = attention.attributes["scale"].as_float()
    attention.attributes["scale"] = ir.AttrFloat32("scale", scale * 1.05)
    assert not verify(demo_model(), model).passed


def test_what_a_file_says_of_itself_must_be_a_truth_value():
    text = InterfaceMap(prompts_only=True).to_json()
    assert InterfaceMap.from_json(text).prompts_only
    with pytest.raises(mla_opt.InputError, match="prompts_only must be true or false"):
        InterfaceMap.from_json(text.replace('"prompts_only": true', '"prompts_only": 1'))
