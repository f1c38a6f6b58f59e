"""What ``ExportedModel.save_pretrained`` of transformers writes.

``export.json`` names the file of every component: ``model``, or ``prefill`` and ``decode``. The
program puts the outputs of a graph, by their order, into the structure that was recorded when it
was traced, and hands the cache that one component returns to the next. So inputs and outputs must
keep their names, and where there are several components their shapes as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mla_opt.errors import InputError, RefusedError
from mla_opt.folders.config import read_config
from mla_opt.folders.kind import Configs, Kind, Model
from mla_opt.folders.names import named_file
from mla_opt.folders.tree import Tree

MANIFEST = "export.json"


def opened(tree: Tree) -> tuple[str, ...] | None:
    """The files of the components.

    Raises:
        InputError: they are no ONNX files, or not there.
    """
    if MANIFEST not in tree.files:
        return None
    manifest = read_config(tree, MANIFEST)
    components = manifest.get("components")
    if not isinstance(components, dict) or "export_format" not in manifest:
        return None
    if manifest["export_format"] != "onnx":
        raise InputError(
            f"{tree.path(MANIFEST)}: the export is for {manifest['export_format']!r}; export it"
            " with transformers' OnnxExporter, or give one program (.pt2) of it"
        )
    return tuple(named_file(tree, MANIFEST, name) for name in _files(tree, components))


def configs(tree: Tree, models: Sequence[Model]) -> Configs:
    """None: what the manifest says of the cache has no sizes.

    Raises:
        RefusedError: the program would not find its way in the new interface.
    """
    for model in models:
        if model.renamed:
            raise RefusedError(
                f"{tree.path(model.name)}: {model.renamed[0]!r} is not in the interface that"
                " transformers recorded; ask for cache 'keep', or give the file alone"
            )
        if model.changes and len(opened(tree) or ()) > 1:
            raise RefusedError(
                f"{tree.path(model.name)}: its cache would change its shape, which the other"
                " components of the export hand over; export it with transformers 5.15 or newer,"
                " which caches latent rows"
            )
    return {}


def _files(tree: Tree, components: Mapping[str, Any]) -> Iterator[str]:
    for name, component in components.items():
        file = component.get("file") if isinstance(component, dict) else None
        if not isinstance(file, str):
            raise InputError(f"{tree.path(MANIFEST)}: component {name!r} names no file")
        yield file


KIND = Kind("transformers' ExportedModel", opened, configs)
