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
from tests.exports.refusals import CODES, check_refusals

#: One of each kind: a decoder, one whose heads share keys, an encoder with a decoder, and near
#: misses. The sweep has all; `tests/axes` writes many more look-alikes itself.
QUICK = {
    "llama",
    "multi_query",
    "t5",
    "separate_latents",
    "rope_per_head",
    "nonlinear_values",
    "token_reversal",
    "linear_attention",
}
AT_18 = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.sweep)
    for name in sorted(CONTROLS)
]
#: At opset 23 rotary embedding is one operator, in front of which keys are seen to end.
AT_23 = [
    pytest.param("llama", "not_linear", id="llama"),
    *(
        pytest.param(name, None, marks=pytest.mark.sweep, id=name)
        for name in ("gpt2", "separate_latents", "nonlinear_values")
    ),
]


def refused(path: Path) -> mla_opt.OptimizationReport:
    with pytest.raises(mla_opt.NothingMatchedError) as caught:
        mla_opt.optimize(path)
    assert caught.value.report is not None
    return caught.value.report


@pytest.mark.parametrize("name", AT_18)
def test_control_is_refused_and_left_alone(name: str) -> None:
    path = exported_control(name)
    before = path.read_bytes()
    check_refusals(name, refused(path))
    passed_on = ir.to_proto(mla_opt.optimize(path, allow_unmatched=True).model)
    assert graph_bytes(passed_on) == graph_bytes(reread(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(("name", "code"), AT_23)
def test_control_is_refused_where_operators_are_fused(name: str, code: str | None) -> None:
    check_refusals(name, refused(exported_control(name, 23)), code)


def reread(path: Path) -> onnx.ModelProto:
    """The file as onnx_ir reads and writes it: the order of metadata is its own."""
    return ir.to_proto(ir.from_proto(onnx.load(path)))


def graph_bytes(model: onnx.ModelProto) -> bytes:
    return model.graph.SerializeToString(deterministic=True)


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
