"""The folder that is written: whole or absent, whatever stops the run, and never over the input."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import mla_opt
from mla_opt.errors import InputError
from mla_opt.files.lock import Lock
from mla_opt.folders import output
from mla_opt.folders.output import OutputFolder
from tests.folders import layouts
from tests.folders.layouts import content


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return layouts.optimum(tmp_path / "in")


def optimized(source: Path, target: Path, *, force: bool = False) -> None:
    mla_opt.optimize_folder(source, target, force=force, verify=False)


def old(folder: Path) -> dict[str, bytes]:
    """Make a folder of a model that is to be replaced."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"old")
    return content(folder)


def test_replaced_by_force_only(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    before = old(target)
    with pytest.raises(InputError, match="exists already; use --force"):
        optimized(source, target)
    assert content(target) == before
    optimized(source, target, force=True)
    assert set(content(target)) == set(content(source))
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_replaced_where_the_model_lies_deeper(tmp_path: Path) -> None:
    source, target = layouts.save(tmp_path / "in/sub/deep/m.onnx").parents[2], tmp_path / "out"
    for force in (False, True):
        optimized(source, target, force=force)
    assert set(content(target)) == {"sub/deep/m.onnx"}


def test_an_empty_folder_is_taken(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    optimized(source, tmp_path / "out")
    assert set(content(tmp_path / "out")) == set(content(source))


def as_input(folder: Path) -> Path:
    return folder / "in"


def by_a_link(folder: Path) -> Path:
    (folder / "link").symlink_to("in")
    return folder / "link"


def around(folder: Path) -> Path:
    layouts.save(folder / "model.onnx")
    return folder


def inside(folder: Path) -> Path:
    return folder / "in" / "out"


def no_model(folder: Path) -> Path:
    (folder / "precious").mkdir()
    (folder / "precious/thesis.txt").write_text("")
    return folder / "precious"


def a_file(folder: Path) -> Path:
    return layouts.save(folder / "m.onnx")


def a_link(folder: Path) -> Path:
    old(folder / "elsewhere")
    (folder / "link").symlink_to("elsewhere")
    return folder / "link"


def nowhere(folder: Path) -> Path:
    return folder / "none" / "out"


REFUSED: dict[Callable[[Path], Path], str] = {
    as_input: "is the folder that is read",
    by_a_link: "is the folder that is read",
    around: "holds the input",
    inside: "lies in the folder that is read",
    no_model: "holds no ONNX model, and is not replaced",
    a_file: "is a file, and a folder is written",
    a_link: "is a link",
    nowhere: "there is no folder",
}


@pytest.mark.parametrize("place", REFUSED, ids=lambda each: each.__name__)
def test_refused_even_by_force(place: Callable[[Path], Path], source: Path, tmp_path: Path) -> None:
    target = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=REFUSED[place]):
        optimized(source, target, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_blobs_of_the_input_are_not_replaced(tmp_path: Path) -> None:
    snapshot = layouts.hugging_face_cache(tmp_path)
    blobs = tmp_path / "models--org--name" / "blobs"
    layouts.save(blobs / "model.onnx")
    with pytest.raises(InputError, match="holds the input"):
        optimized(snapshot, blobs, force=True)


class Stop(BaseException):
    """As a signal would end the run."""


def write_new(target: Path) -> None:
    with OutputFolder(target) as out:
        out.write("config.json", b"new")
        out.copy("sub/model.onnx", target.with_name("model.onnx"))
        out.commit()


class Steps:
    """What the run asks of the system; it is stopped before the step of this number."""

    def __init__(self, last: int) -> None:
        self.last, self.done = last, 0

    def counted(self, function: Callable[..., object]) -> Callable[..., object]:
        def step(*arguments: object, **options: object) -> object:
            self.done += 1
            if self.done == self.last:
                raise Stop
            return function(*arguments, **options)

        return step


@pytest.mark.parametrize("exchanges", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("replaces", [True, False], ids=["over an old one", "new"])
def test_whole_or_absent_whatever_step_fails(
    replaces: bool, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = {"config.json": b"new", "sub/model.onnx": b"model"}
    (tmp_path / "model.onnx").write_bytes(b"model")
    for last in range(1, 100):
        target, steps = tmp_path / f"out{last}", Steps(last)
        before = old(target) if replaces else None
        with monkeypatch.context() as patch:
            for name in ("mkdir", "rename", "open"):
                patch.setattr(Path, name, steps.counted(getattr(Path, name)))
            patch.setattr(os, "fsync", steps.counted(os.fsync))
            exchange = output.exchange if exchanges else lambda one, other: False
            patch.setattr(output, "exchange", steps.counted(exchange))
            with contextlib.suppress(Stop):
                write_new(target)
        assert (content(target) if target.exists() else None) in (before, new)
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
        if steps.done < last:
            break
    assert 10 < last < 99
    assert content(target) == new


def test_what_a_killed_run_has_left_is_cleared_up(source: Path, tmp_path: Path) -> None:
    left = tmp_path / ".out.0123456789ab.tmp"
    old(left)
    (tmp_path / ".out.lock").write_text("")
    other = tmp_path / ".other.0123456789ab.tmp"
    old(other)
    optimized(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", other.name}


def test_what_was_about_to_be_replaced_comes_back(tmp_path: Path) -> None:
    before = old(tmp_path / ".out.0123456789ab.old")
    with OutputFolder(tmp_path / "out"):
        assert content(tmp_path / "out") == before


def test_one_run_at_a_time(source: Path, tmp_path: Path) -> None:
    lock = Lock.acquire(tmp_path / "out")
    try:
        with pytest.raises(InputError, match="another run is writing it"):
            optimized(source, tmp_path / "out")
    finally:
        lock.release()


def test_a_full_disk(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left") as error:
        optimized(source, tmp_path / "out")
    assert ".tmp" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_where_the_system_cannot_exchange_names(tmp_path: Path) -> None:
    assert not output.exchange(tmp_path / "none", tmp_path / "neither")
