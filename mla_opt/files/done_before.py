"""What an earlier run has made: the same run on unchanged files has nothing to do.

A record is a small JSON file in the user's cache folder, named by what was asked for. It has the
stamps of all files of the input, taken before their numbers were read, and of the output::

    asked for  {release, model, output, options} ──SHA-256──> NAME.json
    stamps     [path, size, inode, time of the last change of content, of anything]

Records hold nothing of a model, and may be deleted at any time. No time of the system's own can be
set by a program, so a file that was written to has another stamp.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mla_opt

#: The folder of the records; empty for none.
VARIABLE = "MLA_OPT_CACHE"
Stamp = list[str | int]


def cache_folder() -> Path | None:
    """Where records are: what the variable says, or a folder of the user's cache."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # nobody's home
        return None
    return Path(base) / "mla-opt"


def stamps(files: Iterable[Path]) -> list[Stamp]:
    """What tells whether files, and folders, are the same as before."""
    return [_stamp(path) for path in sorted({path.absolute() for path in files})]


class Record:
    """What is known of one run: by what was asked for, and this release.

    Nothing here fails: what cannot be read is not known, and what cannot be written is not kept.
    """

    def __init__(self, asked: Mapping[str, Any]) -> None:
        """Find its place."""
        folder = cache_folder()
        self._path = None
        if folder is not None:
            self._path = folder / f"{_name({'release': _release(), **asked})}.json"

    def holds(self) -> bool:
        """Whether it was done, and all files of the input and the output are as they were then."""
        if self._path is None:
            return False
        try:
            known = json.loads(self._path.read_text())
            return bool(known) and all(_stamp(Path(each[0])) == each for each in known)
        except (OSError, ValueError, TypeError, LookupError):
            return False

    def keep(self, known: list[Stamp]) -> None:
        """Note that it was done."""
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial = self._path.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps(known))
            partial.replace(self._path)


def _name(asked: Mapping[str, Any]) -> str:
    text = json.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _stamp(path: Path) -> Stamp:
    """That of a file that is not there has its name only."""
    try:
        found = path.stat()
    except OSError:
        return [str(path)]
    return [str(path), found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _release() -> list[str | Stamp]:
    """The version and the stamps of its code: a checkout keeps its version, and links to passes."""
    package = Path(mla_opt.__file__).parent
    folders = os.walk(package, followlinks=True)
    code = (Path(folder, name) for folder, _, names in folders for name in names)
    return [mla_opt.__version__, *stamps(path for path in code if path.suffix == ".py")]
