"""Any folder with one ONNX file, and no config that says what opens it."""

from __future__ import annotations

from collections.abc import Sequence

from mla_opt.folders.kind import Configs, Kind, Model
from mla_opt.folders.tree import Tree


def opened(tree: Tree) -> tuple[str, ...] | None:
    """The file, if it is the only one."""
    models = tree.models()
    return models if len(models) == 1 else None


def configs(tree: Tree, models: Sequence[Model]) -> Configs:
    """None."""
    del tree, models
    return {}


KIND = Kind("one ONNX file", opened, configs)
