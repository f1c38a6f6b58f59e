"""Processes that start as forks have what they need, and nothing that takes long to import."""

from __future__ import annotations

import sys
from pathlib import Path

from tests import forked
from tests.end_to_end.command import IMPORTED, context, environment


def modules() -> None:
    """What is imported in this process, before anything runs."""
    print(*sys.modules)


def test_a_command_finds_everything_imported_and_torch_left_out(tmp_path: Path) -> None:
    """For an ONNX file no command needs it, and it takes a second."""
    done = forked.run(context(), modules, [], environment=environment(), cwd=tmp_path, timeout=60)
    found = set(done.stdout.split())
    assert set(IMPORTED) <= found
    assert "torch" not in found
