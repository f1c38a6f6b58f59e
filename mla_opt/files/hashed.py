"""Hashes of files: of what lies there, and of what is written while it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO

from mla_opt.errors import InputError

Bytes = bytes | memoryview

_CHUNK = 1 << 20


class HashedStream:
    """A stream to write to; a second thread hashes what was written last.

    ``before`` is what the hash begins with, in front of what is written.
    """

    def __init__(self, stream: IO[bytes], before: bytes = b"") -> None:
        self._stream = stream
        self._digest = hashlib.sha256(before)
        self._aside = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> HashedStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for the thread."""
        self._aside.shutdown()

    def write(self, content: Bytes) -> int:
        """Write, and let it be hashed."""
        self._wait()
        self._pending = self._aside.submit(self._digest.update, content)
        return self._stream.write(content)

    def hexdigest(self) -> str:
        """The SHA-256 of all of it, in hex."""
        self._wait()
        return self._digest.hexdigest()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


def sha256(files: Sequence[Path]) -> str:
    """Return the hash, in hex, of the files one after the other.

    For one file it is what ``sha256sum`` prints. The files are read in pieces.

    Raises:
        InputError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
