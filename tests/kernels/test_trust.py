"""Which libraries may be loaded: who can write them, and what vouches for their content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mla_opt.errors import KernelUnavailableError
from mla_opt.kernels import trust
from mla_opt.kernels.library import LIBRARY


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library in a folder of its own, and no notes yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(trust.HASHES_VARIABLE, raising=False)
    folder = tmp_path / "built"
    folder.mkdir(mode=0o755)
    path = folder / "lib.so"
    path.write_bytes(b"code")
    return path


def test_the_packages_own_need_no_note() -> None:
    trust.check_library(LIBRARY)


def test_what_nobody_vouches_for(library: Path) -> None:
    with pytest.raises(KernelUnavailableError, match="was not built here"):
        trust.check_library(library)


def test_what_was_built_here(library: Path, tmp_path: Path) -> None:
    for _ in range(2):
        trust.remember(library)
    trust.check_library(library)
    assert len((tmp_path / "state" / "mla-opt" / "libraries").read_text().split()) == 1
    assert (tmp_path / "state" / "mla-opt" / "libraries").stat().st_mode & 0o077 == 0
    library.write_bytes(b"other code")
    with pytest.raises(KernelUnavailableError, match="was not built here"):
        trust.check_library(library)


def test_what_the_user_names(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"code").hexdigest()
    monkeypatch.setenv(trust.HASHES_VARIABLE, f"{'0' * 64},{digest}")
    trust.check_library(library)


@pytest.mark.parametrize("place", ["file", "folder", "link"])
def test_what_others_can_write(library: Path, place: str, tmp_path: Path) -> None:
    trust.remember(library)
    named = library
    if place == "file":
        library.chmod(0o666)
    elif place == "folder":
        library.parent.chmod(0o777)
    else:  # the folder that a link leads to counts
        named = tmp_path / "link.so"
        named.symlink_to(library)
        library.parent.chmod(0o757)
    with pytest.raises(KernelUnavailableError, match="others can write"):
        trust.check_library(named)


def test_notes_that_others_can_write_are_none(library: Path, tmp_path: Path) -> None:
    trust.remember(library)
    (tmp_path / "state" / "mla-opt" / "libraries").chmod(0o666)
    with pytest.raises(KernelUnavailableError, match="was not built here"):
        trust.check_library(library)


def test_no_place_for_notes(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    trust.remember(library)
    with pytest.raises(KernelUnavailableError, match="was not built here"):
        trust.check_library(library)
