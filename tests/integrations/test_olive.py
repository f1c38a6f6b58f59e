"""`MlaOpt` in Olive's workflows, as docs/olive.md prints them, before and behind a quantizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest

from mla_opt.integrations.options import OPTIONS
from mla_opt.models import demo_model
from tests.exports.cache import ROOT
from tests.integrations.demo_runs import FUSED, check_same, fused
from tests.integrations.packages import installed
from tests.pages import blocks

pytestmark = pytest.mark.other_runtimes

PAGE = ROOT / "docs" / "olive.md"
INSTALL, RUN = (block.code for block in blocks(PAGE))
QUANTIZE = {"type": "OnnxBlockWiseRtnQuantization", "bits": 4, "block_size": 32}
LATENT = {"type": "MlaOpt"}
#: The layers of the demo that make keys and values; the operator takes their weights.
KV_B = ["node_linear_3", "node_linear_11"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages = INSTALL.removeprefix("pip install ").replace("'", "").split()
    return installed(tmp_path_factory.mktemp("olive") / "env", *packages)


def sh(python: Path, code: str, folder: Path) -> str:
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", code],
        cwd=folder,
        env=os.environ | {"PATH": path, "OLIVE_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    return said


def workflow(python: Path, folder: Path, *passes: dict[str, Any]) -> str:
    """Run passes on the demo, by Olive's command; returns what it prints."""
    folder.mkdir()
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(demo_model())},
        "passes": {f"step {place}": each for place, each in enumerate(passes)},
        "output_dir": "out",
    }
    (folder / "workflow.json").write_text(json.dumps(config))
    listed = "python -m mla_opt.integrations.olive > packages.json\n"
    return sh(python, listed + RUN.partition(listed)[2], folder)


def made_by(python: Path, folder: Path, *passes: dict[str, Any]) -> onnx.ModelProto:
    """The model that passes make of the demo."""
    said = workflow(python, folder, *passes)
    models = list((folder / "out").glob("*.onnx"))
    assert len(models) == 1, said[-4000:]
    return onnx.load(models[0])


def test_the_page(python: Path, tmp_path: Path) -> None:
    shutil.copyfile(demo_model(), tmp_path / "model.onnx")
    sh(python, RUN, tmp_path)
    made = tmp_path / "optimized"
    assert fused(onnx.load(made / "model.onnx")) == FUSED
    report = json.loads((made / "mla_opt.report.json").read_text())
    assert report["verification"]["passed"]
    assert len(report["sites"]) == 2


def test_behind_a_quantizer(python: Path, tmp_path: Path) -> None:
    quantized = made_by(python, tmp_path / "quantized", QUANTIZE)
    both = made_by(python, tmp_path / "both", QUANTIZE, LATENT)
    assert fused(both) == FUSED
    check_same(both, quantized)


def test_before_a_quantizer(python: Path, tmp_path: Path) -> None:
    """The same as quantizing all but what the operator holds."""
    kept = {**QUANTIZE, "nodes_to_exclude": KV_B}
    quantized = made_by(python, tmp_path / "quantized", kept)
    both = made_by(python, tmp_path / "both", LATENT, QUANTIZE)
    assert fused(both) == FUSED
    check_same(both, quantized)


def test_the_options_of_the_pass(python: Path) -> None:
    code = (
        "import json; from olive.hardware import DEFAULT_CPU_ACCELERATOR as cpu;"
        "from mla_opt.integrations.olive import MlaOpt;"
        "print(json.dumps(MlaOpt.generate_config(cpu).model_dump()))"
    )
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == {name: each.default for name, each in OPTIONS.items()}


def test_nothing_unproved_is_written(python: Path, tmp_path: Path) -> None:
    """In the second pass there is nothing to be found; Olive reports that, and exits with 0."""
    said = workflow(python, tmp_path / "twice", LATENT, LATENT)
    assert "has optimized the model already" in said
    assert not list((tmp_path / "twice" / "out").glob("*.onnx"))
