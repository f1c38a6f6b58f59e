"""The commands for real, each in a process of its own, on a real export."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import pytest

from mla_opt.models import demo_model
from mla_opt.report import OptimizationReport
from mla_opt.report.schema import INSPECTION, REPORT, SchemaFile
from tests.end_to_end import protos
from tests.end_to_end.command import command, environment, files
from tests.exports.controls import exported_control

PASSES = [
    "drop_no_ops",
    "take_out_roundings",
    "find_latent_attention",
    "extract_weights",
    "check_roundings",
    "choose_form",
    "compress_cache",
]


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(plain, tmp_path / "deepseek.onnx"))


@pytest.fixture(scope="module")
def optimized(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("optimized") / "deepseek.mla.onnx"
    done = command("optimize", plain, "-o", output, "--no-verify", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return output


def valid(text: str, schema: SchemaFile) -> Any:
    """JSON that keeps to its schema."""
    data = json.loads(text)
    jsonschema.validate(data, schema.load())
    return data


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_optimize_with_a_report(copy: Path) -> None:
    report = copy.with_name("report.json")
    done = command("optimize", copy, "--report", report)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(files(copy.parent)) == {"deepseek.onnx", "deepseek.mla.onnx", "report.json"}
    output = copy.with_name("deepseek.mla.onnx")
    assert protos.checker_complaint(onnx.load(output)) == ""
    assert done.stdout.splitlines()[-1].startswith(f"wrote {output} (")
    assert done.stdout.endswith("2 latent attentions rewritten, verified\n")
    assert "H=3 N=24 R=8" in done.stdout
    assert "\x1b" not in done.stdout
    data = valid(report.read_text(), REPORT)
    assert (data["input"]["sha256"], data["output"]["sha256"]) == (digest(copy), digest(output))
    assert len(data["sites"]) == 2
    assert data["verification"]["passed"]
    assert OptimizationReport.from_json(report.read_text()).sites[0].geometry.kv_lora_rank == 48


def test_optimize_does_not_overwrite(copy: Path) -> None:
    output = copy.with_name("deepseek.mla.onnx")
    output.write_text("precious")
    done = command("optimize", copy, "--no-verify")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*deepseek\.mla\.onnx.*--force.*\n", done.stderr)
    assert output.read_text() == "precious"
    done = command("optimize", copy, "--no-verify", "--force")
    assert done.returncode == 0, done.stderr
    assert onnx.load(output).functions


def test_optimize_portable(copy: Path) -> None:
    done = command("optimize", copy, "--target", "portable", "--cache", "packed")
    assert done.returncode == 0, done.stderr
    assert not onnx.load(copy.with_name("deepseek.mla.onnx")).functions


def test_optimize_tells_of_its_passes(copy: Path) -> None:
    done = command("optimize", copy, "--no-verify", "--time-passes", "--print-between-passes")
    assert done.returncode == 0, done.stderr
    told = re.findall(r"^// after (\w+)$", done.stdout, re.MULTILINE)
    assert told[: len(PASSES)] == PASSES
    assert told[-1] == "clean_up"
    before, after = (
        done.stdout.split(f"// after {name}\n")[1].split("// after ")[0]
        for name in ("find_latent_attention", "absorb_weights")
    )
    assert "ScatterND" in before
    assert "LatentAttention" not in before
    assert "LatentAttention" in after
    table = done.stdout.rpartition("// after")[2]
    assert all(re.search(rf"{name}\b.*\d\.\d\d\d", table) for name in told)


def test_optimize_runs_chosen_passes(copy: Path) -> None:
    names = "find_latent_attention,extract_weights"
    done = command("optimize", copy, "--no-verify", "--passes", names, "--time-passes")
    assert done.returncode == 0, done.stderr
    assert "absorb_weights" not in done.stdout
    before, after = onnx.load(copy), onnx.load(copy.with_name("deepseek.mla.onnx"))
    assert [node.name for node in after.graph.node] == [node.name for node in before.graph.node]


def test_optimize_knows_its_passes(copy: Path) -> None:
    done = command("optimize", copy, "--passes", "find_everything")
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*'find_everything'.*find_latent_attention.*\n", done.stderr)
    assert list(files(copy.parent)) == ["deepseek.onnx"]


def test_inspect(plain: Path) -> None:
    done = command("inspect", plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert "H=3 N=24 R=8 V=20 C=48 Q=52 E=84" in done.stdout


def test_inspect_json(plain: Path) -> None:
    done = command("inspect", plain, "--json", "--context", "4096", "--batch", "2")
    assert (done.returncode, done.stderr) == (0, "")
    data = valid(done.stdout, INSPECTION)
    assert data["model"]["sha256"] == digest(plain)
    attentions = data["attentions"]
    assert [attention["matched"] for attention in attentions] == [True, True]
    assert attentions[0]["geometry"]["num_heads"] == 3
    costs = attentions[0]["costs"]
    assert (costs["batch"], costs["total_len"]) == (2, 4096)
    assert {form["form"] for form in costs["forms"]} >= {"factored", "fold", "expanded"}


def test_inspect_says_what_is_near() -> None:
    done = command("inspect", exported_control("rope_per_head"), "--json")
    assert done.returncode == 3
    (attention,) = valid(done.stdout, INSPECTION)["attentions"]
    assert (attention["matched"], attention["refusal"]["code"]) == (False, "rope_per_head")
    assert attention["refusal"]["nodes"]


def test_verify(plain: Path, optimized: Path) -> None:
    done = command("verify", plain, optimized)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"verification passed \(--seed \d+ repeats it\)\n", done.stdout)
    for control in ("scale", "rope", "heads"):
        assert re.search(rf"│ {control} .* detected │", done.stdout)
    assert "logits" in done.stdout


def test_verify_quietly(plain: Path, optimized: Path) -> None:
    done = command("verify", plain, optimized, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def spoiled(optimized: Path, path: Path, last: bool, factor: float) -> Path:
    """The optimized model with the first or the last rows of its W_UK and W_UV a little off."""
    model = onnx.load(optimized)
    weight = next(each for each in model.graph.initializer if each.name.endswith("kv_b"))
    array = onnx.numpy_helper.to_array(weight).copy()
    array[slice(-8, None) if last else slice(8)] *= np.float32(factor)
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("last", [False, True])
def test_verify_finds_a_wrong_matrix(
    plain: Path, optimized: Path, tmp_path: Path, last: bool
) -> None:
    """W_UK of the first head, or W_UV of the last one, one per cent off."""
    done = command("verify", plain, spoiled(optimized, tmp_path / "spoiled.onnx", last, 1.01))
    assert done.returncode == 4
    assert re.fullmatch(r"error: verification failed: logits: error .*\n", done.stderr)
    assert "verification failed" in done.stdout


#: The command line with a defect put in: W_UK is spoiled after its certificate.
SPOILING = """
import mla_opt.matching.provers as provers
from mla_opt.cli import main

certify = provers.certify

def certify_and_spoil(graph, site, weights):
    certificate = certify(graph, site, weights)
    spoiled = weights.by_head.copy()
    spoiled[0, : len(weights.nope_dims)] *= 1.05
    object.__setattr__(weights, "by_head", spoiled)
    return certificate

provers.certify = certify_and_spoil
main()
"""


def test_optimize_writes_nothing_that_it_cannot_prove(copy: Path) -> None:
    """What no certificate sees, verification stops."""
    report = copy.with_name("report.json")
    done = subprocess.run(
        [sys.executable, "-c", SPOILING, "optimize", str(copy), "--report", str(report)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4, done.stderr
    assert re.fullmatch(r"error: .*logits.*\n", done.stderr)
    assert set(files(copy.parent)) == {"deepseek.onnx", "report.json"}
    data = valid(report.read_text(), REPORT)
    assert (data["output"], data["verification"]["passed"]) == (None, False)


def test_demo(tmp_path: Path) -> None:
    done = command("demo", "--output", tmp_path / "demo")
    assert (done.returncode, done.stderr) == (0, "")
    kept = files(tmp_path / "demo")
    assert set(kept) == {"demo.onnx", "demo.mla.onnx", "demo.report.json"}
    data = valid(kept["demo.report.json"].decode(), REPORT)
    assert len(data["sites"]) == 2
    assert "verification passed" in done.stdout
    rows = re.findall(r"│ +(\d+) │ .* │ +([\d.]+)x │", done.stdout)
    assert [int(past) for past, _ in rows] == [512, 2048, 8192]
    # Measured: 9x, 110x and 200x.
    assert float(rows[-1][1]) > 10


def test_demo_model() -> None:
    """Small, found where it is installed, and without a word of the machine it was made on."""
    path = demo_model()
    assert path.stat().st_size < 900_000
    model = onnx.load(path)
    assert protos.checker_complaint(model) == ""
    assert model.producer_name == "pytorch"
    assert not re.search(rb"site-packages|/home/|\.py", path.read_bytes())


def test_usage_errors() -> None:
    assert command("optimize").returncode == 2
    assert command("frobnicate").returncode == 2
    assert command("--version").stdout.startswith("mla-opt ")
    helped = command("--help")
    assert "4 verification failed (and nothing written)" in " ".join(helped.stdout.split())
