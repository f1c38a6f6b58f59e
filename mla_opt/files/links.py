"""Where the links of a folder may lead: nowhere but into the folder itself, with one exception.

The Hugging Face cache keeps every file of a repository once, in ``blobs``, and a snapshot is links
to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def roots(folder: Path) -> Iterator[Path]:
    """The folder, and the blobs of its repository where it is part of a Hugging Face cache."""
    yield Path(os.path.realpath(folder))
    for snapshots in (folder, *folder.parents):
        repository = snapshots.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            yield Path(os.path.realpath(repository)) / "blobs"
            return


def leads_out(file: Path, folder: Path) -> bool:
    """Whether a file is, links followed, outside of a folder (and of the blobs of its cache)."""
    real = Path(os.path.realpath(file))
    return not any(real.is_relative_to(each) for each in roots(folder))
