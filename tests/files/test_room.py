"""A limited address space is told before a library ends the process."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from mla_opt.files import room
from mla_opt.files.model_io import read_model
from tests.end_to_end.command import command
from tests.files.small_models import proto, save


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))


def test_below_what_the_libraries_take(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", proto())
    for name in ("optimize", "inspect"):
        done = command(name, path, preexec=limited(room.LEAST - (1 << 20)))
        assert done.returncode == 2
        assert done.stderr.startswith("error: out of memory: ")
        assert "511 MiB of addresses (ulimit -v)" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_model_larger_than_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "m.onnx", proto())
    taken = room._taken()
    assert taken > 50 << 20
    monkeypatch.setattr(room, "_limit", lambda: taken + (32 << 20))
    with pytest.raises(MemoryError, match=r"m.onnx: reading it takes 64 MiB, and \d+ MiB"):
        read_model(path)
    monkeypatch.setattr(room, "_limit", lambda: taken + (1 << 30))
    read_model(path)


def test_without_a_limit() -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("the tests run under a limit")
    room.require_limit()
    room.require_room(1 << 60, "everything")
