"""Tools that look at ONNX files or write them anew, before `optimize` and behind it.

onnxslim, onnxsim, Polygraphy with onnx-graphsurgeon, and Netron.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

import mla_opt
from mla_opt.models import demo_model
from tests.integrations.demo_runs import FUSED, check_same, fused, outputs
from tests.integrations.packages import installed

pytestmark = pytest.mark.other_runtimes

PACKAGES = (
    "onnxslim==0.1.98",
    "onnxsim==0.8.1",
    "polygraphy==0.53.6",
    "onnx-graphsurgeon==0.6.1",
    "netron==9.3.3",
)
SANITIZE = "polygraphy surgeon sanitize"
SIMPLIFIERS = {
    "onnxslim": "onnxslim {} {}",
    "onnxsim": "onnxsim {} {}",
    "polygraphy": SANITIZE + " --fold-constants {} -o {}",
}
NETRON = Path(__file__).with_name("run_netron.mjs")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What they need besides is here already."""
    return installed(tmp_path_factory.mktemp("tools") / "env", *PACKAGES, deps=False)


@pytest.fixture(scope="module")
def original() -> onnx.ModelProto:
    return onnx.load(demo_model())


def called(python: Path, command: str) -> subprocess.CompletedProcess[str]:
    name, *arguments = command.split()
    return subprocess.run(
        [python.parent / name, *arguments], capture_output=True, text=True, check=False
    )


def written_anew(python: Path, tool: str, model: Path) -> Path:
    output = model.with_suffix(f".{tool}.onnx")
    done = called(python, SIMPLIFIERS[tool].format(model, output))
    assert output.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return output


def optimized(folder: Path, **options: Any) -> Path:
    path = folder / "demo.mla.onnx"
    ir.save(mla_opt.optimize(demo_model(), verify=False, **options).model, path)
    return path


@pytest.mark.parametrize("tool", SIMPLIFIERS)
def test_before(python: Path, original: onnx.ModelProto, tool: str, tmp_path: Path) -> None:
    source = tmp_path / "demo.onnx"
    onnx.save(original, source)
    result = mla_opt.optimize(written_anew(python, tool, source), verify=False)
    made = ir.to_proto(result.model)
    assert fused(made) == FUSED
    check_same(made, original)


@pytest.mark.parametrize("tool", ["onnxsim", "polygraphy"])
def test_behind(python: Path, original: onnx.ModelProto, tool: str, tmp_path: Path) -> None:
    made = onnx.load(written_anew(python, tool, optimized(tmp_path)))
    assert fused(made) == FUSED
    check_same(made, original)


@pytest.mark.parametrize("tool", SIMPLIFIERS)
def test_behind_portable(
    python: Path, original: onnx.ModelProto, tool: str, tmp_path: Path
) -> None:
    made = onnx.load(written_anew(python, tool, optimized(tmp_path, target="portable")))
    check_same(made, original)


def test_what_onnxslim_drops(python: Path, original: onnx.ModelProto, tmp_path: Path) -> None:
    """It takes operands out of a function and not out of its calls: only kernels are right then.

    Where this fails, onnxslim has become better, and docs/graph-tools.md is to say so.
    """
    made = onnx.load(written_anew(python, "onnxslim", optimized(tmp_path)))
    assert fused(made) == FUSED
    (function,) = made.functions
    (call, _) = (node for node in made.graph.node if node.op_type in FUSED)
    assert len(function.input) < len(call.input)
    for got, wanted in zip(outputs(made, kernel=True), outputs(original, kernel=False)):
        assert abs(got - wanted).max() < 1e-4 * wanted.std()


def test_functions_and_conditionals_are_too_much_for_onnxslim(python: Path, tmp_path: Path) -> None:
    """As above: where this fails, the page is to say so."""
    model = optimized(tmp_path, weights="float")
    done = called(python, SIMPLIFIERS["onnxslim"].format(model, tmp_path / "out.onnx"))
    assert "RecursionError" in done.stderr + done.stdout


def test_polygraphy_extracts_and_shows(python: Path, tmp_path: Path) -> None:
    model, part = optimized(tmp_path), tmp_path / "part.onnx"
    extract = f"polygraphy surgeon extract {model} --outputs present.0.keys:auto -o {part}"
    assert called(python, extract).returncode == 0
    assert [each.name for each in onnx.load(part).graph.output] == ["present.0.keys"]
    shown = called(python, f"polygraphy inspect model {model} --show layers attrs").stdout
    assert shown.count("[Op: MultiHeadLatentAttention]") == 2


@pytest.mark.parametrize("target", ["onnxruntime", "portable"])
def test_netron_shows_operator_and_body(python: Path, target: str, tmp_path: Path) -> None:
    (home,) = python.parents[1].glob("lib/python*/site-packages/netron")
    (home.parent / "package.json").write_text('{"type": "module"}')
    model = optimized(tmp_path, target=target)
    command = ["node", NETRON, home, model]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)[model.name]
    count = {name: told["operators"].get(name, 0) for name in FUSED}
    if target == "portable":
        assert count == dict.fromkeys(FUSED, 0)
        return
    assert count == FUSED
    assert all("kv_lora_rank" in names for names in told["attributes"])
    assert told["functions"]["MultiHeadLatentAttention"]["If"] == 1
