"""Files that appear together, or not at all: whoever looks, and whatever stops the writer.

Every file is written under a temporary name in its own folder and flushed to the disk. The others
are renamed first, to names that no file has; the rename of the last one, which refers to them,
decides. What it replaces is removed after that. So at every moment the name of the last file stands
for all of the old content or all of the new.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO

from mla_opt.errors import InputError
from mla_opt.files.lock import Lock

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{12}\.tmp")

Referred = Callable[[], frozenset[str]]
"""Names of the files that the last one refers to, as it is at that moment; may raise InputError."""


@dataclass
class Transaction:
    """Write ``last``, and files that it refers to, as one.

    Attributes:
        last: the file whose rename decides.
        referred: asked what may not be removed, where a killed writer has left files.
    """

    last: Path
    referred: Referred = frozenset
    _lock: Lock | None = None
    _pending: list[tuple[Path, Path]] = field(default_factory=list)
    _replaced: Sequence[Path] = ()
    _deciding: bool = False

    def __enter__(self) -> Transaction:
        """Take the lock and clear up behind a writer that was killed.

        Raises:
            InputError: another process is writing the file.
        """
        self._lock = Lock.acquire(self.last)
        try:
            self._clear_up(self._lock)
        except BaseException:
            self._lock.abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what is not to stay, on success and on failure."""
        assert self._lock is not None
        try:
            if self._is_committed():
                _discard(self._replaced)
            else:
                _discard([path for pair in self._pending for path in pair if path != self.last])
        except BaseException:
            self._lock.abandon()
            raise
        self._lock.release()

    @contextlib.contextmanager
    def open(self, target: Path) -> Iterator[IO[bytes]]:
        """Open a new file that will become ``target``; on leaving, its bytes are on the disk."""
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        if target != self.last:
            self._note(target)
        self._pending.append((temporary, target))
        descriptor = os.open(temporary, flags, 0o666)
        with os.fdopen(descriptor, "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def commit(self, replaced: Sequence[Path] = ()) -> None:
        """Rename every file to its target, ``last`` behind the others; then remove ``replaced``.

        No target but ``last`` may exist.
        """
        self._replaced = replaced
        others = [pair for pair in self._pending if pair[1] != self.last]
        if replaced:
            self._note(*replaced)
        for temporary, target in others:
            temporary.rename(target)
        if others:
            sync_folder(self.last.parent)
        self._deciding = True
        for temporary, target in self._pending:
            if target == self.last:
                temporary.replace(target)
        sync_folder(self.last.parent)

    def _note(self, *more: Path) -> None:
        """Note files that a killed writer leaves, besides those that are being made already."""
        assert self._lock is not None
        made = [target for _, target in self._pending if target != self.last]
        self._lock.note([path.name for path in (*made, *more)])

    def _is_committed(self) -> bool:
        """Told by the files: a signal may come between a rename and any note of it."""
        return self._deciding and not any(
            os.path.lexists(temporary) for temporary, target in self._pending if target == self.last
        )

    def _clear_up(self, lock: Lock) -> None:
        """Remove what a killed writer of the same file has left."""
        folder, noted = self.last.parent, lock.noted()
        with contextlib.suppress(InputError):  # what cannot be read may refer to all of them
            kept = self.referred() if noted else frozenset()
            _discard([folder / name for name in noted if _is_name(name) and name not in kept])
        ours = {self.last.name, *noted}
        _discard([path for path in _hidden(folder) if _target_of(path) in ours])
        if noted:
            lock.note(())


def _is_name(name: str) -> bool:
    """Whether it names a file in the folder, and no other folder's."""
    return name not in ("", ".", "..") and Path(name).name == name


def _hidden(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                yield Path(entry.path)


def _target_of(temporary: Path) -> str | None:
    found = _TEMPORARY.fullmatch(temporary.name)
    return None if found is None else found["name"]


def _discard(paths: Sequence[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames durable; not every system can, and the files are complete without it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
