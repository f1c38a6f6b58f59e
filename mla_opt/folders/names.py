"""Names of files that configs give."""

from __future__ import annotations

import posixpath

from mla_opt.errors import InputError
from mla_opt.folders.tree import Tree


def named_file(tree: Tree, config: str, name: str) -> str:
    """Return the file of a folder that a config beside it names.

    Raises:
        InputError: it is not in the folder.
    """
    found = posixpath.normpath(posixpath.join(posixpath.dirname(config), name))
    if found not in tree.files:
        raise InputError(
            f"{tree.path(config)}: names the file {name!r}, which is not in the folder"
        )
    return found
