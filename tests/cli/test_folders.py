"""``mla-opt optimize FOLDER``: what it prints and writes, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from mla_opt.report import OptimizationReport
from tests.cli.conftest import Run
from tests.folders import layouts
from tests.folders.layouts import EXPANDED, LATENT, NOTHING

QUICK = "--no-verify"


def test_a_folder(run: Run, tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in", EXPANDED)
    result = run("optimize", source)
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "in.mla"]
    said = result.stdout.splitlines()
    assert "config.json: num_key_value_heads 3 -> 1" in said
    assert (
        f"wrote {tmp_path / 'in.mla'}, for optimum: 1 latent attention rewritten in 1 ONNX file,"
        " verified; 2 files copied"
    ) in said


def test_more_than_one_file(run: Run, tmp_path: Path) -> None:
    source, report = layouts.exported(tmp_path / "in", LATENT, LATENT), tmp_path / "r.json"
    layouts.save(source / "vision.onnx", NOTHING)
    given = ("-o", tmp_path / "out", "--report", report, QUICK)
    result = run("optimize", source, *given)
    assert result.exit_code == 0, result.stderr
    assert "prefill.onnx:" in result.stdout
    assert "vision.onnx is left as it was: the model has no attention" in result.stdout
    for name, sites in (("prefill", 1), ("decode", 1), ("vision", 0)):
        read = OptimizationReport.from_json((tmp_path / f"r.{name}.json").read_text())
        assert len(read.sites) == sites
        assert read.options["target"] == "onnxruntime"
        assert read.input is not None
        assert read.input.path == str(source / f"{name}.onnx")
    again = run("optimize", source, *given)
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert ".json: exists already" in again.stderr


def test_quiet(run: Run, tmp_path: Path) -> None:
    source = layouts.genai(tmp_path / "in")
    assert run("optimize", source, QUICK, "-q").stdout == ""
    again = run("optimize", source, QUICK, "-q")
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
    assert "in.mla: exists already" in again.stderr
    assert run("optimize", source, QUICK, "-q", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--cache", "packed"), 3, "optimum knows caches of one key and one value"),
        (("--weights-files", "share"), 2, "an optimized folder has all its weights"),
        (("--cache", "static:0"), 2, "--cache"),
    ],
)
def test_refused(options: tuple[str, ...], code: int, said: str, run: Run, tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in")
    result = run("optimize", source, "-o", tmp_path / "out", QUICK, *options)
    assert result.exit_code == code
    assert said in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_matched(run: Run, tmp_path: Path) -> None:
    source, report = layouts.optimum(tmp_path / "in", NOTHING), tmp_path / "r.json"
    result = run("optimize", source, "--report", report)
    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert OptimizationReport.from_json(report.read_text()).sites == ()
    assert run("optimize", source, "--allow-unmatched").exit_code == 0
    assert (tmp_path / "in.mla/tokenizer.json").read_bytes() == layouts.TOKENIZER


def test_a_checkpoint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    result = run("optimize", tmp_path, "-o", tmp_path.with_name("out"))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "optimum-cli export onnx --model" in result.stderr


def test_a_report_in_the_folder_that_is_written(run: Run, tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in")
    (tmp_path / "out").mkdir()
    result = run("optimize", source, "-o", tmp_path / "out", "--report", tmp_path / "out/r.json")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "is in the folder that is written" in result.stderr


def test_a_snapshot_needs_a_place(run: Run, tmp_path: Path) -> None:
    snapshot = layouts.hugging_face_cache(tmp_path)
    result = run("optimize", snapshot)
    assert result.exit_code == 2
    assert "give a folder with -o" in result.stderr
    assert run("optimize", snapshot, "-o", tmp_path / "out", QUICK).exit_code == 0
