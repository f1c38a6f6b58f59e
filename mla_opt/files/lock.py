"""One writer at a time for one file, and what a writer that was killed has left behind.

The lock is a hidden file beside the target, held by the system for as long as the process lives.
It names the files that are being made or replaced, so that the next writer can remove what a killed
one has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mla_opt.errors import InputError


class Lock:
    """The right to write ``target``; made by `acquire`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def acquire(cls, target: Path) -> Lock:
        """Take the lock of ``target``.

        Raises:
            InputError: another process has it.
            OSError: no file can be made beside the target.
        """
        path = target.with_name(f".{target.name}.lock")
        while True:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
            try:
                _lock(descriptor, target)
                if _is_at(descriptor, path):
                    return cls(path, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # its holder has removed it meanwhile; there may be a new one

    def note(self, names: Sequence[str]) -> None:
        """Write down the names of files that a killed writer leaves; returns when that is safe."""
        content = json.dumps(list(names)).encode() + b"\n"
        # Never a moment without a note: the rest of a longer one before stands behind the newline.
        os.pwrite(self._descriptor, content, 0)
        os.ftruncate(self._descriptor, len(content))
        os.fsync(self._descriptor)

    def noted(self) -> tuple[str, ...]:
        """The names that a killed writer has noted."""
        try:
            names = json.loads(os.pread(self._descriptor, 1 << 16, 0).partition(b"\n")[0])
        except (ValueError, RecursionError):  # there are none
            return ()
        known = isinstance(names, list) and all(isinstance(name, str) for name in names)
        return tuple(names) if known else ()

    def release(self) -> None:
        """Remove the lock's file and let the next writer in."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)

    def abandon(self) -> None:
        """Let the next writer in, and leave it what is noted."""
        os.close(self._descriptor)


def _lock(descriptor: int, target: Path) -> None:
    """Lock an open file; without effect on file systems that know no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{target}: another run is writing it; wait until it has ended, or give another name"
        ) from None
    except OSError:  # writers have to take turns by themselves there
        pass


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
