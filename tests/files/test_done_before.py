"""Notes of earlier runs: what another release is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mla_opt
from mla_opt.files.done_before import VARIABLE, Record


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package laid out as this one is in a checkout, which is the one that runs."""
    package, passes = tmp_path / "mla_opt", tmp_path / "passes"
    for folder in (package / "files", passes):
        folder.mkdir(parents=True)
        (folder / "one.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "passes").symlink_to(passes)
    monkeypatch.setattr(mla_opt, "__file__", str(package / "__init__.py"))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "notes"))
    Record({"model": "m"}).keep([[str(tmp_path / "nowhere")]])
    return tmp_path


CHANGES: dict[str, Callable[[Path], object]] = {
    "a module": lambda folder: (folder / "mla_opt/files/one.py").write_text("1"),
    "a pass": lambda folder: (folder / "passes/one.py").write_text("1"),
    "a new pass": lambda folder: (folder / "passes/two.py").write_text(""),
    "a module that is gone": lambda folder: (folder / "mla_opt/files/one.py").unlink(),
}


def test_the_same_code_knows_its_notes(checkout: Path) -> None:
    assert Record({"model": "m"}).holds()
    assert not Record({"model": "n"}).holds()


@pytest.mark.parametrize("change", CHANGES)
def test_changed_code_is_another_release(checkout: Path, change: str) -> None:
    CHANGES[change](checkout)
    assert not Record({"model": "m"}).holds()
