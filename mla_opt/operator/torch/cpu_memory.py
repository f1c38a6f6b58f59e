"""Memory for new caches that are too large for the C library to keep.

A growing cache is a new tensor every step, and the old one is freed. The C library of Linux gives
memory beyond 32 MiB back to the system at once, so that every step has its pages looked for and
cleared anew: two layers of 32k tokens took 72 ms a step that way, and 24 ms with what is here.

Blocks of freed tensors are kept for the next ones, but never more bytes than such tensors are in
use at that time: when the last cache goes, so does all of it.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import math
import mmap
import sys
import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_BYTES = 32 << 20
"""Where glibc's own threshold for memory that it gives back stops growing."""
_HUGE_PAGE = 2 << 20
_SLACK = 16
"""A block has a 16th more than it was asked for: caches grow by a row a step."""


class BlockPool:
    """Blocks of anonymous memory, lent to tensors. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[mmap.mmap] = []
        self._lent = 0
        # Tensors die wherever the garbage collector runs, within `empty` too: then what they leave
        # is only put here, and whoever has the lock takes it in before leaving.
        self._returned: collections.deque[mmap.mmap] = collections.deque()

    @property
    def lent_bytes(self) -> int:
        """Bytes of blocks that tensors are using."""
        self._settle()
        return self._lent

    @property
    def free_bytes(self) -> int:
        """Bytes of blocks that are kept for the next ones."""
        self._settle()
        return sum(map(len, self._free))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return an uninitialised tensor of more than 0 elements; its block returns with it."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            self._drain()
            block = self._fitting(size) or _new_block(size)
            self._lent += len(block)
        self._settle()
        lease = (ctypes.c_char * size).from_buffer(block)
        returning = weakref.finalize(lease, self._give_back, block)
        returning.atexit = False
        storage = torch.frombuffer(lease, dtype=torch.uint8).untyped_storage()
        # Not a view of the bytes: operators' outputs are to be tensors of their own.
        strides = torch.empty(shape, device="meta").stride()
        return torch.empty(0, dtype=dtype).set_(storage, 0, shape, strides)

    def _fitting(self, size: int) -> mmap.mmap | None:
        """Take the smallest free block that fits and is not mostly left over."""
        fitting = [block for block in self._free if size <= len(block) <= 2 * size]
        if not fitting:
            return None
        block = min(fitting, key=len)
        self._free.remove(block)
        return block

    def _give_back(self, block: mmap.mmap) -> None:
        self._returned.append(block)
        self._settle()

    def _settle(self) -> None:
        """Take in what was returned, unless someone is at it, who then looks again."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()

    def _drain(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._lent -= len(block)
            self._free.append(block)
        # The oldest first: caches that grew beyond them will not fit again.
        while sum(map(len, self._free)) > self._lent:
            self._free.pop(0)


def _new_block(size: int) -> mmap.mmap:
    capacity = size + size // _SLACK
    capacity = (capacity + _HUGE_PAGE - 1) // _HUGE_PAGE * _HUGE_PAGE
    block = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a system without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


_pool = BlockPool()


def empty_like_cache(cache: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an uninitialised tensor of ``shape`` and of the type of ``cache``, on the CPU."""
    if sys.platform != "linux" or math.prod(shape) * cache.dtype.itemsize < LEAST_BYTES:
        return cache.new_empty(shape)
    return _pool.empty(shape, cache.dtype)
