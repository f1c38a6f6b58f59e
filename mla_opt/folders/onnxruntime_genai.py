"""Folders of onnxruntime-genai: ``genai_config.json`` names the files and describes the caches.

``model.decoder`` has one ``head_size`` and one ``num_key_value_heads`` for all keys and values, and
names with ``%d`` for their inputs and outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mla_opt.errors import InputError, RefusedError
from mla_opt.folders.cache_rows import stated
from mla_opt.folders.config import number, read_config
from mla_opt.folders.kind import Configs, Kind, Model
from mla_opt.folders.names import named_file
from mla_opt.folders.tree import Tree
from mla_opt.report.report import PortSpec

CONFIG = "genai_config.json"
MOST_LAYERS = 10_000
#: Names of the caches, where the config leaves them out.
INPUTS = {
    "past_key_names": "past_key_values.%d.key",
    "past_value_names": "past_key_values.%d.value",
}
OUTPUTS = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
_INSTEAD = "ask for cache 'keep', or give the file alone"


def opened(tree: Tree) -> tuple[str, ...] | None:
    """The files that the config names.

    Raises:
        InputError: it names none, or one that is not there.
    """
    if CONFIG not in tree.files:
        return None
    model = read_config(tree, CONFIG).get("model")
    names = sorted({named_file(tree, CONFIG, name) for name in _filenames(model)})
    if not names:
        raise InputError(f"{tree.path(CONFIG)}: names no ONNX file under 'model'")
    return tuple(names)


def configs(tree: Tree, models: Sequence[Model]) -> Configs:
    """The config, with the head size and the heads of the new caches.

    Raises:
        RefusedError: the caches are none that it can describe.
    """
    changed = [model for model in models if model.changes]
    if not changed:
        return {}
    config = copy.deepcopy(read_config(tree, CONFIG))
    decoder = _decoder(tree, config, changed)
    found = stated(_caches(tree, decoder, changed[0]))
    if len(found) != 1:
        sizes = ", ".join(f"{heads} x {width}" for heads, width in sorted(found))
        raise RefusedError(
            f"{tree.path(changed[0].name)}: onnxruntime-genai has one head_size for keys and"
            f" values, and the caches would be {sizes or 'of no known size'}; ask for cache 'even',"
            " which cuts rows into halves of one width, or give the file alone"
        )
    decoder["num_key_value_heads"], decoder["head_size"] = next(iter(found))
    return {CONFIG: config}


def _filenames(part: Any) -> Iterator[str]:
    """Every ONNX file that is named in a part of the config."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    name = part.get("filename") if isinstance(part, dict) else None
    if isinstance(name, str) and name.lower().endswith(".onnx"):
        yield name
    for each in inner:
        yield from _filenames(each)


def _decoder(tree: Tree, config: dict[str, Any], changed: Sequence[Model]) -> dict[str, Any]:
    """The part of the config that describes the one model whose interface has changed."""
    model = config["model"]
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    known = isinstance(name, str) and named_file(tree, CONFIG, name) == changed[0].name
    if isinstance(decoder, dict) and known and len(changed) == 1:
        return decoder
    raise RefusedError(
        f"{tree.path(changed[0].name)}: its caches would change, and {CONFIG} has a decoder in one"
        f" file only to describe them; {_INSTEAD}"
    )


def _caches(tree: Tree, decoder: Mapping[str, Any], model: Model) -> Iterator[PortSpec]:
    """The caches by the names that the config gives them; all have to be there."""
    layers = number(decoder, "num_hidden_layers") or 0
    if not 0 < layers <= MOST_LAYERS:
        raise InputError(f"{tree.path(CONFIG)}: num_hidden_layers is {layers}; copy it again")
    for part, names, ports in (
        ("inputs", INPUTS, model.inputs),
        ("outputs", OUTPUTS, model.outputs),
    ):
        given = decoder.get(part)
        patterns = {**names, **given} if isinstance(given, dict) else names
        for pattern in (patterns[each] for each in names):
            for layer in range(layers):
                name = str(pattern).replace("%d", str(layer))
                if name not in ports:
                    raise RefusedError(
                        f"{tree.path(model.name)}: would have no cache {name!r}, which"
                        f" onnxruntime-genai looks for; {_INSTEAD}"
                    )
                yield ports[name]


KIND = Kind("onnxruntime-genai", opened, configs)
