"""``mla-opt optimize --force`` on what it made before: nothing is done unless something changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import mla_opt
from mla_opt.files import done_before
from tests.cli.conftest import Run
from tests.cli.fakes import FakeApi
from tests.files.small_models import WEIGHT, save_external
from tests.folders import layouts

SAID = "is up to date: this release made it of the same input with the same options"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv(done_before.VARIABLE, str(folder))
    return folder


@pytest.fixture
def made(run: Run, api: FakeApi, tmp_path: Path) -> tuple[Any, ...]:
    """The arguments of a run that was done: a model with a data file, and a report."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "w.bin").write_bytes(WEIGHT.tobytes())
    model = save_external(folder / "m.onnx")
    given = (model, "-o", tmp_path / "out.onnx", "--report", tmp_path / "r.json", "--force")
    assert "wrote" in run("optimize", *given).stdout
    api.asked = {}
    return given


def written(path: Path) -> None:
    """Change a file that keeps its size, and give it the time that it had."""
    before, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_nothing_is_done_again(run: Run, api: FakeApi, made: Any, tmp_path: Path) -> None:
    before = (tmp_path / "out.onnx").stat()
    result = run("optimize", *made)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{tmp_path / 'out.onnx'} {SAID}")
    assert not api.asked
    assert (tmp_path / "out.onnx").stat() == before


@pytest.mark.parametrize("name", ["in/w.bin", "out.onnx", "out.onnx.data", "r.json"])
def test_what_changed_is_noticed(
    run: Run, api: FakeApi, made: Any, tmp_path: Path, name: str
) -> None:
    written(tmp_path / name)
    run("optimize", *made)
    assert api.asked


@pytest.mark.parametrize("name", ["out.onnx", "out.onnx.data", "r.json"])
def test_what_is_gone_is_made_again(
    run: Run, api: FakeApi, made: Any, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).unlink()
    assert "wrote" in run("optimize", *made).stdout
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    "other", ["--no-verify", "--absorb=fold", "--weights-files=share", "--cache=even"]
)
def test_other_options_are_another_run(run: Run, api: FakeApi, made: Any, other: str) -> None:
    run("optimize", *made, other)
    assert api.asked


def test_another_release_is_another_run(
    run: Run, api: FakeApi, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mla_opt, "__version__", "0.0.9", raising=False)
    run("optimize", *made)
    assert api.asked


def test_what_is_to_be_shown_is_shown(run: Run, api: FakeApi, made: Any) -> None:
    assert "find_latent_attention" in run("optimize", *made, "--time-passes").stdout
    assert api.asked


def test_without_force_it_is_still_a_file_that_exists(run: Run, made: Any) -> None:
    result = run("optimize", *made[:-1])
    assert result.exit_code == 2
    assert "exists already" in result.stderr


def test_what_failed_is_not_noted(run: Run, api: FakeApi, made: Any, cache: Path) -> None:
    api.error = mla_opt.InputError("no")
    known = list(cache.iterdir())
    assert run("optimize", *made, "--no-verify").exit_code == 2
    assert list(cache.iterdir()) == known


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[[]]", b"[[1]]", b"\xff", b"7"])
def test_a_damaged_note_is_none(
    run: Run, api: FakeApi, made: Any, cache: Path, content: bytes
) -> None:
    (note,) = cache.iterdir()
    note.write_bytes(content)
    assert "wrote" in run("optimize", *made).stdout
    assert api.asked


def test_nowhere_to_note_anything(
    run: Run, api: FakeApi, made: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place in ("", str(tmp_path / "in" / "m.onnx" / "below")):
        monkeypatch.setenv(done_before.VARIABLE, place)
        assert "wrote" in run("optimize", *made).stdout


def test_the_users_cache_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(done_before.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert done_before.cache_folder() == tmp_path / "mla-opt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert done_before.cache_folder() == tmp_path / "home" / ".cache" / "mla-opt"


def test_a_folder(run: Run, tmp_path: Path) -> None:
    source = layouts.optimum(tmp_path / "in", layouts.LATENT)
    given = (source, "-o", tmp_path / "out", "--force", "--no-verify")
    assert "wrote" in run("optimize", *given).stdout
    assert SAID in run("optimize", *given).stdout
    (source / "another.txt").write_text("new")
    assert "wrote" in run("optimize", *given).stdout
    assert (tmp_path / "out" / "another.txt").read_text() == "new"
    assert SAID in run("optimize", *given).stdout
    written(tmp_path / "out" / "config.json")
    assert "wrote" in run("optimize", *given).stdout
