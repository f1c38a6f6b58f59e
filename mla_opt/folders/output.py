"""Write a folder that appears whole or not at all.

Files are made in a hidden folder beside the place, flushed to the disk, and the folder is renamed.
One that is replaced changes places with the new one in one step where the system can do that, so at
every moment the name stands for all of the old folder or all of the new. What a killed run has left
is removed by the next one for the same output.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

from mla_opt.errors import InputError
from mla_opt.files.lock import Lock
from mla_opt.files.model_io import check_parent, check_replaced, one_line_errors
from mla_opt.files.transaction import sync_folder
from mla_opt.folders.tree import Tree

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def check_output_folder(target: Path, tree: Tree, *, force: bool) -> None:
    """Check, before any work is done, that a folder may be written.

    Raises:
        InputError: it is, holds, or lies in the one that is read; it exists, and ``force`` does not
            allow to replace it, or it holds no model; or its own folder is not writable.
    """
    with one_line_errors(target):
        _check_apart(target, tree)
        if target.is_symlink():
            raise InputError(f"{target}: is a link; give the folder itself, or another one")
        if target.exists() and not target.is_dir():
            raise InputError(f"{target}: is a file, and a folder is written; give another name")
        if not _is_free(target):
            _check_replaceable(target, tree, force)
        check_parent(target)


def _check_apart(target: Path, tree: Tree) -> None:
    written, read = (Path(os.path.realpath(each)) for each in (target, tree.folder))
    if written == read:
        raise InputError(f"{target}: is the folder that is read; give another one to write to")
    if written.is_relative_to(read):
        raise InputError(f"{target}: lies in the folder that is read; give one outside of it")
    check_replaced(target, [tree.folder, *tree.files.values()])


def _check_replaceable(target: Path, tree: Tree, force: bool) -> None:
    if not force:
        raise InputError(f"{target}: exists already; use --force to replace it, or another name")
    found = (*target.glob("*.onnx"), *target.glob("onnx/*.onnx"))
    if not found and not any((target / name).exists() for name in tree.models()):
        raise InputError(f"{target}: holds no ONNX model, and is not replaced; give another name")


def _is_free(target: Path) -> bool:
    """Whether nothing is there, or an empty folder."""
    return not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir()))


class OutputFolder:
    """A folder under way; it takes its place in `commit`, or goes without a trace."""

    def __init__(self, target: Path) -> None:
        self._target = target.resolve()
        self._lock: Lock | None = None
        self._hidden = self._target.with_name(f".{self._target.name}.{secrets.token_hex(6)}.tmp")

    def __enter__(self) -> OutputFolder:
        """Take the lock, and clear up behind a run that was killed.

        Raises:
            InputError: another run is writing the folder.
        """
        with one_line_errors(self._target):
            self._lock = Lock.acquire(self._target)
            try:
                self._clear_up()
                self._hidden.mkdir()
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what is not to stay: the unfinished folder, or the one that was replaced."""
        assert self._lock is not None
        shutil.rmtree(self._hidden, ignore_errors=True)
        self._lock.release()

    def path(self, name: str) -> Path:
        """Where to write the file that will have this name; its folder is made."""
        path = self._hidden / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def final(self, name: str) -> Path:
        """Where that file will be."""
        return self._target / name

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Tell of errors as if the files were written in place."""
        try:
            with one_line_errors(self._target):
                yield
        except InputError as error:
            told = str(error).replace(str(self._hidden), str(self._target))
            raise InputError(told) from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file."""
        with self.errors(), self._new(name) as stream:
            stream.write(content)

    def copy(self, name: str, source: Path) -> None:
        """Copy a file, byte for byte."""
        try:
            content = source.open("rb")
        except OSError as error:
            raise InputError(f"{source}: cannot be read: {error.strerror}") from error
        with content, self.errors(), self._new(name) as stream:
            shutil.copyfileobj(content, stream, 1 << 20)

    def commit(self) -> None:
        """Let the folder take its place.

        Raises:
            InputError: it cannot.
        """
        with self.errors():
            for below, _, _ in os.walk(self._hidden):
                sync_folder(Path(below))
            if _is_free(self._target):
                self._hidden.rename(self._target)
            elif not exchange(self._hidden, self._target):
                self._replace()
            sync_folder(self._target.parent)

    @contextlib.contextmanager
    def _new(self, name: str) -> Iterator[IO[bytes]]:
        """A file that must not be there yet; on leaving, its bytes are on the disk."""
        with self.path(name).open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def _replace(self) -> None:
        """In two steps; between them the old folder has a name that `_clear_up` knows."""
        aside = self._hidden.with_suffix(".old")
        try:
            self._target.rename(aside)
            self._hidden.rename(self._target)
        except BaseException:
            if not os.path.lexists(self._target):
                aside.rename(self._target)
            raise
        shutil.rmtree(aside, ignore_errors=True)

    def _clear_up(self) -> None:
        """Remove what a killed run has left; put back what it was about to replace."""
        ours = re.compile(rf"\.{re.escape(self._target.name)}\.[0-9a-f]{{12}}\.(tmp|old)")
        left = [each for each in self._target.parent.iterdir() if ours.fullmatch(each.name)]
        for path in left:
            if path.suffix == ".old" and not os.path.lexists(self._target):
                path.rename(self._target)
            else:
                shutil.rmtree(path, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; false where the system cannot, and nothing is done.

    ``renameat2`` of Linux.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(each) for each in (one, other))
    first, second = names
    done: int = rename(_AT_FDCWD, first, _AT_FDCWD, second, ctypes.c_uint(_RENAME_EXCHANGE))
    return done == 0
