"""Large arrays that are made long before they are written, kept in a file instead of in memory.

The file has no name: it goes with the last array in it, however the process ends. It lies in the
folder for temporary files, which the environment's ``TMPDIR`` names.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from typing import IO

import numpy as np

from mla_opt.handles import Array

LARGE = 1 << 20
"""Bytes from which an array is worth the trouble."""

IN_MEMORY = 256 << 20
"""Bytes of large arrays that stay in memory, as those of a small model do."""


class _Pages(mmap.mmap):
    """Part of a file that was mapped here: nothing is lost when its pages are let go."""


class Aside:
    """Where the arrays of one graph are kept."""

    def __init__(self) -> None:
        self._room = IN_MEMORY
        self._in_memory: weakref.WeakValueDictionary[int, Array] = weakref.WeakValueDictionary()
        self._file: IO[bytes] | None = None
        self._pages: weakref.WeakSet[_Pages] = weakref.WeakSet()

    def keep(self, array: Array) -> Array:
        """Return an array of the same content, which takes no memory while nobody reads it.

        The array itself where it is small, is kept so already, or the disk has no room for it.
        """
        if not is_large(array) or pages_of(array) is not None or self._has_room_for(array):
            return array
        try:
            return self._written(np.ascontiguousarray(array))
        except OSError:  # slower where memory is short, and right all the same
            return array

    def let_go(self) -> None:
        """Give back the memory of what was read; whoever reads it again gets it from the file."""
        for pages in list(self._pages):
            pages.madvise(mmap.MADV_DONTNEED)

    def _has_room_for(self, array: Array) -> bool:
        """Whether an array, or what it is a view of, stays in memory; it takes its room then."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        if self._in_memory.get(id(owner)) is owner:
            return True
        if owner.nbytes > self._room:
            return False
        self._room -= owner.nbytes
        self._in_memory[id(owner)] = owner
        return True

    def _written(self, array: Array) -> Array:
        if self._file is None:
            # Open as long as an array may be added.
            self._file = tempfile.TemporaryFile(prefix="mla_opt_", buffering=0)  # noqa: SIM115
        start = self._file.seek(0, os.SEEK_END)
        start = self._file.seek(start + -start % mmap.ALLOCATIONGRANULARITY)
        _write_all(self._file, array.reshape(-1).view(np.uint8).data)
        pages = _Pages(self._file.fileno(), array.nbytes, access=mmap.ACCESS_READ, offset=start)
        self._pages.add(pages)
        return np.frombuffer(pages, array.dtype).reshape(array.shape)


def is_large(array: Array) -> bool:
    """Whether an array is worth the trouble."""
    return array.nbytes >= LARGE


def let_go(array: Array) -> None:
    """Give back the memory of one array, if it is kept in a file here."""
    pages = pages_of(array)
    if pages is not None:
        pages.madvise(mmap.MADV_DONTNEED)


def pages_of(array: Array) -> _Pages | None:
    """What an array, or what it is a view of, is mapped from."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, _Pages) else None


def _write_all(file: IO[bytes], content: memoryview) -> None:
    while content:
        content = content[file.write(content) :]
