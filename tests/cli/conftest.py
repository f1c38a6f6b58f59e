"""A command line to call in this process, a small model file, and stand-ins for the API."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import mla_opt
from mla_opt.cli._app import app
from tests.cli.fakes import FakeApi
from tests.files.small_models import proto, save

Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call the command line; the result has exit_code, stdout and stderr."""
    monkeypatch.delenv("MLA_OPT_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "m.onnx", proto())


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    """Stand in for ``mla_opt.api``: what the command line does with its answers is tested here."""
    fake = FakeApi()
    module = ModuleType("mla_opt.api")
    module.optimize = fake.optimize  # type: ignore[attr-defined]
    module.inspect = fake.inspect  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mla_opt.api", module)
    monkeypatch.setattr(mla_opt, "api", module, raising=False)
    return fake
