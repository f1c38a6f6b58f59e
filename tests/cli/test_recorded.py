"""``mla-opt verify --from-report``: a proof repeated, and what has changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from tests.cli.conftest import Run
from tests.graphs.latent_block import Block, build


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, what became of it, and the report."""
    from typer.testing import CliRunner

    from mla_opt.cli._app import app

    folder = tmp_path_factory.mktemp("proved")
    (folder / "m.onnx").write_bytes(build(Block()).SerializeToString())
    given = ("optimize", folder / "m.onnx", "--report", folder / "r.json")
    assert CliRunner().invoke(app, [str(each) for each in given]).exit_code == 0
    return folder


@pytest.fixture
def folder(proved: Path, tmp_path: Path) -> Path:
    """The same, moved: the report names files that are somewhere else."""
    return Path(shutil.copytree(proved, tmp_path / "moved"))


def doubled(path: Path) -> None:
    """Double a weight of a model."""
    model = onnx.load(path)
    tensor = next(each for each in model.graph.initializer if "o_proj" in each.name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    onnx.save(model, path)


def noted(path: Path) -> None:
    """Add a note to a model, which computes what it did."""
    model = onnx.load(path)
    model.metadata_props.add(key="note", value="mine")
    onnx.save(model, path)


def test_the_proof_holds(run: Run, proved: Path) -> None:
    done = run("verify", "--from-report", proved / "r.json")
    assert done.exit_code == 0, done.stderr
    assert "verification passed (--seed 0 repeats it)" in done.stdout
    assert "these are the files of the report, by SHA-256" in done.stdout
    assert "the proof's numbers are those of the report" in done.stdout


def test_files_that_were_moved(run: Run, folder: Path) -> None:
    done = run(
        "verify", folder / "m.onnx", folder / "m.mla.onnx", "--from-report", folder / "r.json"
    )
    assert done.exit_code == 0, done.stderr
    assert "these are the files of the report, by SHA-256" in done.stdout


@pytest.mark.parametrize("which", ["m.onnx", "m.mla.onnx"])
@pytest.mark.parametrize(("change", "proof"), [(doubled, False), (noted, True)])
def test_files_that_were_changed(
    run: Run, folder: Path, which: str, change: Callable[[Path], None], proof: bool
) -> None:
    change(folder / which)
    done = run(
        "verify", folder / "m.onnx", folder / "m.mla.onnx", "--from-report", folder / "r.json"
    )
    assert done.exit_code == 4
    assert done.stderr.count("\n") == 1
    assert "these are not the files of the report" in done.stdout
    if proof:
        assert f"{folder / which} has changed: its SHA-256 is " in done.stderr
        assert "verification passed" in done.stdout
        assert "the proof's numbers are those of the report" in done.stdout
    else:
        assert done.stderr.startswith("error: verification failed: ")
        assert "the proof's numbers are not those of the report" in done.stdout


def without_proof(report: dict[str, Any]) -> None:
    report["verification"] = None


def without_output(report: dict[str, Any]) -> None:
    report["output"] = None


def without_seed(report: dict[str, Any]) -> None:
    del report["verification"]["seed"]


def with_a_seed_that_is_none(report: dict[str, Any]) -> None:
    report["verification"]["seed"] = -1


def of_another_version(report: dict[str, Any]) -> None:
    report["schema_version"] = 999


def of_a_program(report: dict[str, Any]) -> None:
    report["input"]["path"] = "evil.pt2"


UNUSABLE: dict[Callable[[dict[str, Any]], None], str] = {
    without_proof: "is of a run without a proof",
    without_output: "is of a run that wrote nothing",
    without_seed: "does not say from which seed",
    with_a_seed_that_is_none: "does not say from which seed",
    of_another_version: "is no report of mla-opt optimize",
    of_a_program: "is about evil.pt2, a program, which can run code when it is loaded",
}


@pytest.mark.parametrize("spoil", UNUSABLE, ids=lambda spoil: spoil.__name__)
def test_reports_that_prove_nothing(
    run: Run, folder: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    path = folder / "r.json"
    report = json.loads(path.read_text())
    spoil(report)
    path.write_text(json.dumps(report))
    done = run("verify", "--from-report", path)
    assert done.exit_code == 2
    assert f"error: {path}: {UNUSABLE[spoil]}" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 200_000, b"null"])
def test_files_that_are_no_reports(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(content)
    done = run("verify", "--from-report", path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {path}: ")
    assert (done.stderr.count("\n"), len(done.stderr) < 600) == (1, True)
