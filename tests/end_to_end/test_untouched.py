"""Models without latent attention, and near misses of it, come out as they went in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

import mla_opt
from tests.end_to_end.command import command, files
from tests.exports.controls import CONTROLS, GENUINE, exported_control

#: What the optimizer says of each control.
CODES = {
    "gpt2": "query_from_projection",
    "llama": "keys_not_from_latent",
    "phi3": "keys_not_from_latent",
    "qwen2": "keys_not_from_latent",
    "qwen3": "keys_not_from_latent",
    "mixtral": "keys_not_from_latent",
    "gemma": "keys_not_from_latent",
    "multi_query": "keys_not_from_latent",
    "bert": "separate_projections",
    "t5_encoder": "separate_projections",
    "t5": "separate_projections",
    "whisper_encoder": "separate_projections",
    "whisper": "separate_projections",
    "vit": "separate_projections",
    "query_from_latent_projection": "query_from_projection",
    "separate_key_value_linears": "separate_projections",
    "separate_latents": "separate_projections",
    "rope_per_head": "rope_per_head",
    "wide_latent": "latent_not_narrower",
    "square_latent": "latent_not_narrower",
    "dynamic_projection": "projection_not_constant",
    "weight_as_input": "projection_not_constant",
    "nonlinear_values": "not_linear",
    "nonlinear_keys": "keys_not_from_latent",
    "token_mixing": "keys_not_from_latent",
    "token_reversal": "certificate_failed",
    "data_dependent_scale": "not_linear",
    "head_mixing": "keys_not_from_latent",
}
#: Nothing to refuse: there is no softmax over scores.
UNSEEN = {"linear_attention"}
#: Two layers each, of encoder, decoder and across; the others are a single block.
LAYERS = dict.fromkeys(list(CODES)[: list(CODES).index("vit") + 1], 2) | {"t5": 6, "whisper": 6}
AT_18 = sorted(CONTROLS)
AT_23 = ["gpt2", "llama", "separate_key_value_linears", "nonlinear_values"]


def refused(path: Path) -> mla_opt.OptimizationReport:
    with pytest.raises(mla_opt.NothingMatchedError) as caught:
        mla_opt.optimize(path)
    assert caught.value.report is not None
    return caught.value.report


def check_refusals(name: str, report: mla_opt.OptimizationReport) -> None:
    assert report.sites == ()
    if name in UNSEEN:
        assert report.refusals == ()
        return
    assert [refusal.code for refusal in report.refusals] == [CODES[name]] * LAYERS.get(name, 1)
    assert len({refusal.site for refusal in report.refusals}) == len(report.refusals)
    for refusal in report.refusals:
        assert re.match(r"[a-z].{20,}", refusal.reason)
        assert refusal.nodes


@pytest.mark.parametrize("name", AT_18)
def test_control_is_refused_and_left_alone(name: str) -> None:
    path = exported_control(name)
    before = path.read_bytes()
    check_refusals(name, refused(path))
    passed_on = ir.to_proto(mla_opt.optimize(path, allow_unmatched=True).model)
    assert graph_bytes(passed_on) == graph_bytes(reread(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", AT_23)
def test_control_is_refused_where_operators_are_fused(name: str) -> None:
    check_refusals(name, refused(exported_control(name, 23)))


def reread(path: Path) -> onnx.ModelProto:
    """The file as onnx_ir reads and writes it: the order of metadata is its own."""
    return ir.to_proto(ir.from_proto(onnx.load(path)))


def graph_bytes(model: onnx.ModelProto) -> bytes:
    return model.graph.SerializeToString(deterministic=True)


def test_every_control_has_an_expected_code() -> None:
    assert CODES.keys() | UNSEEN == set(CONTROLS)


@pytest.mark.parametrize("opset", [18, 23])
def test_the_genuine_block_is_found(opset: int) -> None:
    """What the near misses are near to: they are refused for what they differ in."""
    report = mla_opt.optimize(exported_control(GENUINE.name, opset)).report
    assert (len(report.sites), report.refusals) == (1, ())


@pytest.mark.parametrize("name", ["llama", "token_reversal", "linear_attention"])
def test_the_command_ends_with_3_and_writes_the_report_only(name: str, tmp_path: Path) -> None:
    path = exported_control(name)
    before = path.read_bytes()
    output, report = tmp_path / "out.onnx", tmp_path / "report.json"
    done = command("optimize", path, "-o", output, "--report", report)
    assert done.returncode == 3
    assert re.fullmatch(r"error: .+\n", done.stderr)
    assert list(files(tmp_path)) == ["report.json"]
    written = json.loads(report.read_text())
    assert written["output"] is None
    codes = {refusal["code"] for refusal in written["refusals"]}
    assert codes == ({CODES[name]} if name in CODES else set())
    assert all(code in done.stdout for code in codes)
    assert path.read_bytes() == before


def test_unmatched_models_can_be_passed_on(tmp_path: Path) -> None:
    path, output = exported_control("llama"), tmp_path / "out.onnx"
    done = command("optimize", path, "-o", output, "--allow-unmatched")
    assert done.returncode == 0, done.stderr
    before, after = onnx.load(path), onnx.load(output)
    assert after.functions == before.functions
    assert after.opset_import == before.opset_import
    assert after.metadata_props == before.metadata_props
    assert graph_bytes(after) == graph_bytes(reread(path))
