"""Hashes of files: of what lies there, and of what is written while it is written."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

from mla_opt.errors import InputError

Bytes = bytes | memoryview

_CHUNK = 1 << 20
"""Bytes that are read at once."""

_AHEAD = 8 << 20
"""Bytes that wait for their hash before who gives them waits as well."""


class Digest:
    """A SHA-256 that is made in a thread of its own, of what it is given, in that order.

    ``before`` is what the hash begins with.
    """

    def __init__(self, before: bytes = b"") -> None:
        self._digest = hashlib.sha256(before)
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._ahead = 0
        self._given_up = False

    def __enter__(self) -> Digest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give up what is not hashed yet, and wait for the thread."""
        self._given_up = True
        self._thread.shutdown(cancel_futures=True)

    def write(self, content: Bytes) -> int:
        """Let it be hashed; it must stay as it is."""
        self._submit(len(content), self._thread.submit(self._digest.update, content))
        return len(content)

    def read(self, file: Path, start: int = 0, end: int | None = None) -> None:
        """Let a part of a file be read and hashed, by default up to its end.

        What goes wrong is raised later, by whichever call comes to know of it.
        """
        self._submit(0, self._thread.submit(self._read, file, start, end))

    def hexdigest(self) -> str:
        """The SHA-256 of all of it, in hex.

        Raises:
            InputError: a file could not be read.
        """
        while self._waiting:
            self._wait()
        return self._digest.hexdigest()

    def _submit(self, size: int, hashing: Future[None]) -> None:
        self._waiting.append((size, hashing))
        self._ahead += size
        while self._is_to_wait():
            self._wait()

    def _is_to_wait(self) -> bool:
        if not self._waiting:
            return False
        is_far_ahead = self._ahead > _AHEAD and len(self._waiting) > 1
        return is_far_ahead or self._waiting[0][1].done()

    def _wait(self) -> None:
        size, hashing = self._waiting.popleft()
        self._ahead -= size
        hashing.result()

    def _read(self, file: Path, start: int, end: int | None) -> None:
        for piece in pieces(file, start, end):
            if self._given_up:
                return
            self._digest.update(piece)


class HashedStream:
    """A stream to write to, which has its bytes hashed."""

    def __init__(self, stream: IO[bytes], digest: Digest) -> None:
        self._stream, self._digest = stream, digest

    def write(self, content: Bytes) -> int:
        """Write, and let it be hashed."""
        self._digest.write(content)
        return self._stream.write(content)


def pieces(file: Path, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Read a part of a file, by default up to its end.

    Raises:
        InputError: it cannot be read, or ends too early.
    """
    try:
        with file.open("rb", buffering=0) as stream:
            stream.seek(start)
            while end is None or start < end:
                piece = stream.read(_CHUNK if end is None else min(_CHUNK, end - start))
                if not piece:
                    break
                start += len(piece)
                yield piece
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    if end is not None and start < end:
        raise InputError(f"{file}: has become shorter while it was read; try again")


def sha256(files: Sequence[Path]) -> str:
    """Return the hash, in hex, of the files one after the other.

    For one file it is what ``sha256sum`` prints. The files are read in pieces.

    Raises:
        InputError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        for piece in pieces(file):
            digest.update(piece)
    return digest.hexdigest()
