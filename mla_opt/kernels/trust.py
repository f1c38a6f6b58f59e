"""Which compiled libraries may be loaded: loading one runs its code.

Libraries of this package are as good as the package. Any other is loaded only from where nobody
else can write, and only if its hash is known from elsewhere: `mla-opt build-kernels` notes what it
has built in the user's own state folder, and ``MLA_OPT_LIBRARY_HASHES`` names others.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from mla_opt.errors import KernelUnavailableError

HASHES_VARIABLE = "MLA_OPT_LIBRARY_HASHES"
"""SHA-256 of libraries that may be loaded besides those built here, separated by commas."""

_PACKAGE = Path(__file__).resolve().parents[1]


def check_library(path: Path) -> None:
    """Check that a library may be loaded.

    Raises:
        KernelUnavailableError: others can write it, or nothing vouches for what is in it.
    """
    real = path.resolve()
    if real.is_relative_to(_PACKAGE):
        return
    check_private(real)
    found = _sha256(real)
    if not is_known(found):
        raise KernelUnavailableError(
            f"the library {path} was not built here (SHA-256 {found}): run `mla-opt"
            f" build-kernels`, or put its hash into {HASHES_VARIABLE} if you trust it"
        )


def check_private(path: Path) -> None:
    """Check that nobody but its owner, and the owner's own group, can put other content at a path.

    Raises:
        KernelUnavailableError: others can write the file, or a folder on the way to it.
    """
    for each in (path, *path.parents):
        status = each.stat()
        others = status.st_mode & stat.S_IWOTH or (
            status.st_mode & stat.S_IWGRP and status.st_gid not in (0, os.getegid())
        )
        # In a sticky folder, such as /tmp, everybody's files are their own.
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if (others and not sticky) or status.st_uid not in (0, os.geteuid()):
            raise KernelUnavailableError(
                f"the library {path} is not loaded: others can write {each}; put it where only you"
                " can write"
            )


def remember(library: Path) -> None:
    """Note the hash of a library that this user has built or named.

    Where there is no place for notes, `HASHES_VARIABLE` is left.
    """
    with contextlib.suppress(OSError):
        digest, notes = _sha256(library), _notes()
        if digest in _noted():
            return
        notes.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(f"{digest}\n")


def is_known(sha256: str) -> bool:
    """Whether this user has built, or vouches for, a library of this hash."""
    named = os.environ.get(HASHES_VARIABLE, "").replace(",", " ").split()
    return sha256 in named or sha256 in _noted()


def _noted() -> frozenset[str]:
    try:
        notes = _notes()
        status = notes.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
            return frozenset()
        return frozenset(notes.read_text().split())
    except OSError:
        return frozenset()


def _notes() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mla-opt" / "libraries"


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
