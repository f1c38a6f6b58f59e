"""A bundle of the model that comes along, and what it should say."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_opt.bundles import BundleOptions, export_bundle
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import generate, session

ROWS = 48
PROMPT = [5, 3, 8, 1, 2, 100, 41]
NEW = 12


@pytest.fixture(autouse=True)
def _notes_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Libraries that are remembered are remembered for these tests only."""
    home = tmp_path_factory.getbasetemp() / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(home))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle, which no test changes."""
    folder = tmp_path_factory.mktemp("made") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
        export_bundle(demo_model(), folder, BundleOptions(rows=ROWS))
    return folder


@pytest.fixture(scope="session")
def wanted() -> list[int]:
    """What the model says that the bundle was made of."""
    return said_by(demo_model(), PROMPT, NEW)


def said_by(model: Path, prompt: list[int], count: int) -> list[int]:
    (row,) = generate(session(model), [prompt], max_new_tokens=count).tokens
    return row.tolist()


def loader(folder: Path) -> Callable[[list[int], int], list[int]]:
    """The Python loader of a bundle, in this process."""
    return runpy.run_path(str(folder / "generate.py"))["generate"]
