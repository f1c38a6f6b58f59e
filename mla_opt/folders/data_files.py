"""Which files of a folder hold weights of which ONNX files, and where new weights go."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mla_opt.errors import InputError
from mla_opt.files.model_io import referred_files
from mla_opt.folders.tree import Tree


@dataclass(frozen=True, slots=True)
class DataFiles:
    """Who refers to what.

    Attributes:
        users: for each data file that is there, the ONNX files that refer to it.
        unknown: whether a file could not be read, which may refer to any.
    """

    users: Mapping[str, frozenset[str]] = field(default_factory=dict)
    unknown: bool = False

    @classmethod
    def of(cls, tree: Tree) -> DataFiles:
        """Read them off the ONNX files."""
        users: dict[str, frozenset[str]] = {}
        unknown = False
        for model in tree.models():
            try:
                referred = referred_files(tree.path(model))
            except InputError:
                unknown = True
                continue
            for each in referred:
                name = posixpath.normpath(posixpath.join(posixpath.dirname(model), each))
                if _is_data(tree, name):
                    users[name] = users.get(name, frozenset()) | {model}
        return cls(users, unknown)

    def needless(self, replaced: Collection[str]) -> frozenset[str]:
        """The data files that nobody refers to when these ONNX files have new ones."""
        if self.unknown:
            return frozenset()
        return frozenset(name for name, users in self.users.items() if users <= set(replaced))

    def place(self, tree: Tree, model: str) -> str:
        """Where the weights of an optimized file go: to its one data file's name, if it has one.

        Programs may look for the data under the name that they know.
        """
        own = [name for name, users in self.users.items() if users == {model}]
        beside = [each for each in own if posixpath.dirname(each) == posixpath.dirname(model)]
        if len(own) == 1 and beside and not self.unknown:
            return own[0]
        names = (f"{model}.data", *(f"{model}.{count}.data" for count in range(1, len(tree.files))))
        return next(each for each in names if each not in tree.files)


def _is_data(tree: Tree, name: str) -> bool:
    """Whether it is a file that holds nothing else, whatever a model says of it."""
    return name in tree.files and not name.lower().endswith((".json", ".onnx"))
