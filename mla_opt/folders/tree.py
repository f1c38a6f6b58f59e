"""The files of a folder that may be hostile, found and checked before any of them is read.

Refused are links that lead out of the folder (but for those of a Hugging Face cache to its blobs),
links to folders, devices and the like, hard links, and names that a terminal would obey.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mla_opt.errors import InputError
from mla_opt.files.links import leads_out

MOST_ENTRIES = 100_000
"""Files and folders in all; repositories of models have some dozens."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder and its files.

    Attributes:
        folder: as it was given.
        files: by name below the folder, with ``/``: where each really is, links followed.
    """

    folder: Path
    files: Mapping[str, Path]

    def path(self, name: str) -> Path:
        """A file by the name that it has in the folder."""
        return self.folder / name

    def models(self) -> tuple[str, ...]:
        """Names of the ONNX files."""
        return tuple(name for name in self.files if name.lower().endswith(".onnx"))


def read_tree(folder: Path) -> Tree:
    """List a folder, and those in it.

    Raises:
        InputError: it cannot be read, or holds what is not copied.
    """
    files: dict[str, Path] = {}
    pending, seen = [""], 0
    while pending:
        below = pending.pop()
        for entry in _entries(folder, below):
            name = below + entry.name
            seen += 1
            _check_entry(folder, name, seen)
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{name}/")
            else:
                files[name] = _file(folder, name)
    return Tree(folder, dict(sorted(files.items())))


def _entries(folder: Path, below: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder / below) as entries:
            yield from entries
    except OSError as error:
        raise InputError(f"{folder / below}: cannot be read: {error.strerror}") from error


def _check_entry(folder: Path, name: str, seen: int) -> None:
    if seen > MOST_ENTRIES:
        raise InputError(f"{folder}: holds more than {MOST_ENTRIES} files; give the model's own")
    if not name.isprintable():
        raise InputError(
            f"{folder}: holds a file whose name has control characters or is no text: {name!r};"
            " rename it"
        )


def _file(folder: Path, name: str) -> Path:
    """Where a file really is.

    Raises:
        InputError: it is none that is copied.
    """
    path = folder.absolute() / name
    if leads_out(path, folder.absolute()):
        raise InputError(
            f"{folder}: {name!r} is a link out of the folder; copy the file itself into it"
        )
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"{folder}: {name!r} cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{folder}: {name!r} is a link to a folder; copy the folder itself")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{folder}: {name!r} is not a regular file; remove it")
    if status.st_nlink > 1:
        raise InputError(
            f"{folder}: {name!r} has several hard links and could be a file from elsewhere; copy it"
        )
    return Path(os.path.realpath(path))
