"""Hashing what is written while it is written, so that nobody has to read it again."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO

Bytes = bytes | memoryview


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
