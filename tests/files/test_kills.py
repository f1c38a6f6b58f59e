"""A writer that is stopped leaves the old output or the new one, and nothing for good."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from mla_opt.errors import InputError
from mla_opt.files.model_io import clear_up, write_model
from tests.files.kills import LAST, NEW, OLD, model, seen, write

ROOT = Path(__file__).parents[2]


def kills(*arguments: str) -> int:
    """Run `tests.files.kills`; returns how often the writer was stopped."""
    command = [sys.executable, "-m", "tests.files.kills", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return int(done.stdout)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_stopped_at_every_step(signal: str) -> None:
    assert kills("steps", signal) > 60


def test_stopped_at_random() -> None:
    assert kills("random", "KILL", "10") > 0


@pytest.mark.fuzz
@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_stopped_at_random_500_times(signal: str) -> None:
    assert kills("random", signal, "500") > 100


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    """While somebody holds the lock; when it is free, its file is taken over."""
    path, lock = tmp_path / "out.onnx", tmp_path / ".out.onnx.lock"
    write(path, OLD)
    with lock.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is writing it"):
            write(path, NEW)
        with pytest.raises(InputError, match="another run is writing it"):
            clear_up(path)
        assert seen(path) == OLD
    write(path, NEW)
    assert seen(path) == NEW
    assert names(tmp_path) == ["out.onnx", "out.onnx.1.data"]


def test_the_next_run_needs_no_force_for_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    (tmp_path / "out.onnx.data").write_text("half a run")
    (tmp_path / ".out.onnx.lock").write_text('["out.onnx.data", "../precious", "notes.txt/x"]\n')
    (tmp_path / ".out.onnx.data.0123456789ab.tmp").write_text("more of it")
    (tmp_path / "unrelated.0123456789ab.tmp").write_text("somebody else's")
    (tmp_path.parent / "precious").write_text("not ours")
    clear_up(path)
    assert names(tmp_path) == ["unrelated.0123456789ab.tmp"]
    assert (tmp_path.parent / "precious").exists()
    write_model(model(LAST), path, inline_limit=0)
    assert seen(path) == LAST


def test_data_that_nobody_noted_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "out.onnx.data").write_text("a user's")
    clear_up(tmp_path / "out.onnx")
    with pytest.raises(InputError, match="exists already"):
        write_model(model(LAST), tmp_path / "out.onnx", inline_limit=0)
    assert (tmp_path / "out.onnx.data").read_text() == "a user's"


def test_a_model_without_data_takes_the_place_of_one_with(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    write(path, OLD)
    write_model(model(NEW), path, force=True)
    assert seen(path) == NEW
    assert names(tmp_path) == ["out.onnx"]
