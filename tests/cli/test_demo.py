"""``mla-opt demo``: the order of its steps and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mla_opt.cli import _timing, demo
from tests.cli.conftest import Run
from tests.cli.fakes import FakeApi
from tests.files.small_models import proto


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let the demo model be the small one of these tests, and timing be known."""
    from importlib import resources

    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / demo.MODEL).write_bytes(proto().SerializeToString())
    monkeypatch.setattr(resources, "files", lambda _: folder)
    monkeypatch.setattr(_timing, "decode_seconds", lambda _a, _b, past: (past * 1e-5, 1e-3))
    return folder


def test_all_steps_in_order(run: Run, api: FakeApi, packed: Path) -> None:
    result = run("demo")
    assert result.exit_code == 0, result.stderr
    steps = ["mla-opt inspect", "mla-opt optimize", "mla-opt verify", "one decode step"]
    places = [result.stdout.index(step) for step in steps]
    assert places == sorted(places)
    assert "verification passed" in result.stdout
    assert "81.9 ms" in result.stdout
    assert "81.92x" in result.stdout


def test_without_a_folder_nothing_stays(
    run: Run, api: FakeApi, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("demo").exit_code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["packed"]


def test_files_are_kept_on_demand(run: Run, api: FakeApi, packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "demo"
    result = run("demo", "--output", folder)
    assert result.exit_code == 0, result.stderr
    kept = ["demo.mla.onnx", "demo.onnx", "demo.report.json"]
    assert sorted(file.name for file in folder.iterdir()) == kept
    assert run("demo", "--output", folder).exit_code == 2
    assert run("demo", "--output", folder, "--force").exit_code == 0


def test_the_model_that_comes_along_is_not_written_over(
    run: Run, api: FakeApi, packed: Path, tmp_path: Path
) -> None:
    result = run("demo", "--output", packed, "--force")
    assert result.exit_code == 2
    assert "is read as an input" in result.stderr
    folder = tmp_path / "links"
    folder.mkdir()
    other = tmp_path / "precious"
    other.write_text("precious")
    (folder / demo.MODEL).symlink_to(other)
    assert run("demo", "--output", folder, "--force").exit_code == 0
    assert other.read_text() == "precious"


def test_failed_verification_ends_the_demo(
    run: Run, api: FakeApi, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.cli.test_verify import changed

    original = api.optimize

    def spoiled(model: Any, **options: Any) -> Any:
        from mla_opt.files.model_io import read_model

        other = read_model(changed(packed / "spoiled.onnx", 2.0))
        return original(other, **options)

    monkeypatch.setattr("mla_opt.api.optimize", spoiled)
    result = run("demo")
    assert result.exit_code == 4
    assert "one decode step" not in result.stdout


def test_output_that_is_a_file(run: Run, api: FakeApi, packed: Path) -> None:
    result = run("demo", "--output", packed / demo.MODEL)
    assert result.exit_code == 2
    assert "cannot be made a folder" in result.stderr


def test_missing_model(run: Run, api: FakeApi, packed: Path) -> None:
    (packed / demo.MODEL).unlink()
    result = run("demo")
    assert result.exit_code == 2
    assert "install mla-opt again" in result.stderr
