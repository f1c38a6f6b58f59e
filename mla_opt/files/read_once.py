"""The hash of files that are read for something else: they need not be read for it again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

from mla_opt.files.hashed import Bytes, Digest, pieces


class Out(Protocol):
    """What bytes are written to."""

    def write(self, content: bytes | memoryview) -> int:
        """Write all of it."""


class ReadOnce:
    """The hash of files one after the other, made of the bytes that are copied out of them.

    The hash stands at a place and goes forward, from file to file. What is copied from there on
    goes into it; what was left out before that is read for it, and what lies in front of that place
    is in it already. So the files are read once where they are copied in their order, and the hash
    is the same in any other.

    The first file, the model's, has just been read: it is hashed at once.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        # A file with two names is hashed twice, and copied along with the first.
        self._places: dict[str, int | None] = {
            os.path.realpath(file): place for place, file in reversed([*enumerate(self._files)])
        }
        self._digest = Digest()
        self._place = self._at = 0
        self._go_to(min(1, len(self._files)), 0)

    def __enter__(self) -> ReadOnce:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give up what is not hashed yet."""
        self._digest.__exit__(kind, error, trace)

    def along(self, file: str | Path, start: int, out: Out) -> Out:
        """Return what bytes of a file, from ``start`` on, are copied to, so that they are hashed.

        It is ``out`` itself where the file is none of those.

        Raises:
            InputError: a file that was read before cannot be read.
        """
        place = self._place_of(str(file))
        if place is None:
            return out
        self._go_to(place, start)
        return _Along(self, place, start, out)

    def take(self, place: int, start: int, content: Bytes) -> None:
        """Hash what was read at ``start`` of a file, as far as it is new."""
        end = start + len(content)
        if place == self._place and start <= self._at < end:
            self._digest.write(memoryview(content)[self._at - start :])
            self._at = end

    def hexdigest(self) -> str:
        """The hash in hex, as :func:`mla_opt.files.hashed.sha256` makes it; reads what is left.

        Raises:
            InputError: a file cannot be read.
        """
        self._go_to(len(self._files), 0)
        return self._digest.hexdigest()

    def _place_of(self, file: str) -> int | None:
        if file not in self._places:
            self._places[file] = self._places.get(os.path.realpath(file))
        return self._places[file]

    def _go_to(self, place: int, start: int) -> None:
        """Let everything up to there be read and hashed that is not yet."""
        while self._place < place:
            self._digest.read(self._files[self._place], self._at)
            self._place, self._at = self._place + 1, 0
        if self._place == place and self._at < start:
            self._digest.read(self._files[place], self._at, start)
            self._at = start


class _Along:
    """Passes on what comes from a file, and has it hashed."""

    def __init__(self, source: ReadOnce, place: int, start: int, out: Out) -> None:
        self._source, self._place, self._at, self._out = source, place, start, out

    def write(self, content: bytes | memoryview) -> int:
        """Pass it on."""
        content = bytes(content)  # who reads may read the next piece to the same place
        self._source.take(self._place, self._at, content)
        self._at += len(content)
        return self._out.write(content)


def sha256_along(files: Sequence[Path], source: ReadOnce) -> str:
    """Return the hash of files, as `sha256` does, some of which are those of ``source``, too.

    Those are read once for both.

    Raises:
        InputError: a file cannot be read.
    """
    with Digest() as digest:
        for file in files:
            out = source.along(file, 0, digest)
            for piece in pieces(file):
                out.write(piece)
        return digest.hexdigest()
