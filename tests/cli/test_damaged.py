"""Damaged models on the command line: every command says in one line why it does not take them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.files.damages import REFUSED, Damage
from tests.files.test_damages import damaged


def commands(path: Path) -> dict[str, tuple[object, ...]]:
    """Every command that reads a model."""
    out = path.with_name("out")
    return {
        "optimize": ("optimize", path),
        "inspect": ("inspect", path),
        "report": ("report", path, "-o", out),
        "verify": ("verify", path, path),
        "bench": ("bench", path, path),
        "export": ("export", path, "-o", out, "--onnx-only"),
        "export to onnxruntime": ("export", path, "-o", out, "--to", "onnxruntime"),
        "export to a server": ("export", path, "-o", out, "--to", "triton-server"),
    }


@pytest.mark.parametrize("damage", REFUSED.values(), ids=REFUSED)
def test_every_command_refuses(run: Run, damage: Damage, tmp_path: Path) -> None:
    path = damaged(damage, tmp_path)
    for name, command in commands(path).items():
        done = run(*command)
        assert done.exit_code == 2, name
        assert done.stderr.startswith("error: "), name
        assert done.stderr.count("\n") == 1, name
        assert len(done.stderr) < 700, name
        assert done.stdout == "", name
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]
