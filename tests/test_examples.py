"""The examples run as they stand, and say what they should."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest

from tests.end_to_end.command import command, environment
from tests.exports.cache import ROOT

EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object, cwd: Path, before: Sequence[object] = ()) -> str:
    """Standard output of an example, run from elsewhere."""
    done = subprocess.run(
        [sys.executable, *map(str, before), str(EXAMPLES / name), *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    tested = {
        # By tests/test_readme.py: the README runs it.
        "export_model.py",
        "optimize_in_export_pipeline.py",
        "optimize_torch_program.py",
        "custom_pass.py",
        "generate_text.py",
        "read_report.py",
        "tensor_parallel.py",
        # By tests/integrations/test_openai.py, which installs what it needs.
        "serve_openai.py",
    }
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


@pytest.mark.long
def test_optimize_in_export_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    told = run("optimize_in_export_pipeline.py", "out.onnx", cwd=tmp_path)
    said = [line.partition(":")[2] for line in told.splitlines()[-3:]]
    assert len(set(said)) == 1, "transformers, the original and the optimized model differ"
    assert len(set(said[0].split(","))) > 4, "all tokens are the same: nothing was compared"
    assert "H=4 N=32 R=16 V=32 C=64 Q=48 E=96" in told
    model = onnx.load(tmp_path / "out.onnx")
    assert any("mlp.gate" in tensor.name for tensor in model.graph.initializer), "no experts"
    assert "attention_mask" in {each.name for each in model.graph.input}
    functions = sorted(f.name for f in model.functions)
    assert functions == ["MultiHeadLatentAttention"]


@pytest.mark.long
def test_optimize_torch_program(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    told = run("optimize_torch_program.py", "out.onnx", cwd=tmp_path)
    assert "2 latent attentions absorbed, fused and verified" in told
    errors = [float(line.rpartition(" ")[2]) for line in told.splitlines() if "off by" in line]
    assert len(errors) == 2
    assert max(errors) < 1e-3
    model = onnx.load(tmp_path / "out.onnx")
    functions = {(f.domain, f.name) for f in model.functions}
    assert ("mla_opt", "MultiHeadLatentAttention") in functions


@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 4])
def test_tensor_parallel(tmp_path: Path, processes: int) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes)
    told = run("tensor_parallel.py", tmp_path, cwd=tmp_path, before=torchrun)
    said = [line.partition(":")[2] for line in told.splitlines()[-3:]]
    assert len(set(said)) == 1, "transformers, ONNX Runtime and PyTorch differ"
    assert len(set(said[0].split(","))) > 4, "all tokens are the same: nothing was compared"
    files = [onnx.load(tmp_path / f"rank{rank}.mla.onnx") for rank in range(processes)]
    for model in files:
        assert "MultiHeadLatentAttention" in {f.name for f in model.functions}
        assert "AllReduce" in {node.op_type for node in model.graph.node}
    assert told.count(f"{8 // processes} of 8 heads") == 4 * processes


def test_custom_pass(tmp_path: Path) -> None:
    told = run("custom_pass.py", cwd=tmp_path)
    assert "report_savings: 2 matched" in told
    # 4096 tokens of 4 heads of 32 + 16 + 36 numbers, against 64 + 16 numbers.
    assert told.count("read 1.3 MB once, not 5.5 MB, at 4096 tokens (4.2x less)") == 2


def test_generate_text(tmp_path: Path) -> None:
    told = run("generate_text.py", cwd=tmp_path)
    # 8 and 4 tokens said; of the last turn's, the last was not run.
    assert f"read again: {[5 + 8 + 2 + 3, 2 + 8 + 1 + 3, 4 + 8 + 3 + 3]} tokens" in told
    assert told.count("[") == 3 + 1 + 1


def test_read_report(tmp_path: Path) -> None:
    told = run("read_report.py", cwd=tmp_path)
    assert told.count("form factored") == 2
    assert "noticed when broken: ['scale', 'rope', 'heads']" in told
    assert "input: past.0.keys -> " in told


def test_read_report_from_a_file(plain_report: Path, tmp_path: Path) -> None:
    told = run("read_report.py", plain_report, cwd=tmp_path)
    assert "not verified" in told
    assert told.count("form factored") == 2


@pytest.fixture
def plain_report(tmp_path: Path) -> Path:
    from mla_opt.models import demo_model

    report = tmp_path / "report.json"
    options = ("-o", tmp_path / "out.onnx", "--no-verify", "--report", report)
    assert command("optimize", demo_model(), *options).returncode == 0
    return report
