"""Folders of optimum and of transformers.js: ``config.json``, and the model beside it or in onnx/.

optimum makes the first, empty cache by the config. For DeepSeek-V3 (the one model with latent
attention that it knows) keys are ``num_key_value_heads`` times ``qk_nope_head_dim +
qk_rope_head_dim`` wide, values ``num_key_value_heads`` times ``v_head_dim``. Where keys and values
become latent rows, these have to say what c_kv and k_pe take.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mla_opt.errors import RefusedError
from mla_opt.folders.cache_rows import Rows, stated
from mla_opt.folders.config import number, read_config
from mla_opt.folders.kind import Configs, Kind, Model
from mla_opt.folders.tree import Tree
from mla_opt.report.report import PortSpec

CONFIG = "config.json"
_MODEL = re.compile(r"(onnx/)?(model|decoder)[\w.-]*\.onnx")
#: How optimum tells caches from other inputs and outputs.
_KEY, _VALUE = ".key", ".value"
_INSTEAD = "ask for cache 'keep', or give the file alone"


def opened(tree: Tree) -> tuple[str, ...] | None:
    """The files that either program looks for."""
    if CONFIG not in tree.files:
        return None
    return tuple(name for name in tree.models() if _MODEL.fullmatch(name)) or None


def configs(tree: Tree, models: Sequence[Model]) -> Configs:
    """The config, with the sizes of the new caches.

    Raises:
        RefusedError: it cannot say them.
    """
    changed = [model for model in models if model.changes]
    if not changed:
        return {}
    for model in changed:
        if model.renamed:
            raise RefusedError(
                f"{tree.path(model.name)}: optimum knows caches of one key and one value a layer,"
                f" and not {model.renamed[0]!r}; {_INSTEAD}"
            )
    keys, values = (_one(tree, models, word) for word in (_KEY, _VALUE))
    if keys[0] != values[0]:
        raise RefusedError(f"{tree.folder}: keys and values would have different heads; {_INSTEAD}")
    config = copy.deepcopy(read_config(tree, CONFIG))
    _describe(_holder(tree, config), keys, values)
    return {CONFIG: config}


def _one(tree: Tree, models: Sequence[Model], word: str) -> Rows:
    """The size that all caches of one half have, in all files of the folder."""
    found = stated(port for model in models for port in _caches(model, word))
    if len(found) == 1:
        return next(iter(found))
    sizes = ", ".join(f"{heads} x {width}" for heads, width in sorted(found)) or "of no known size"
    raise RefusedError(
        f"{tree.folder}: {CONFIG} has room for one size of caches {word!r}, and they would be"
        f" {sizes}; {_INSTEAD}"
    )


def _caches(model: Model, word: str) -> Iterator[PortSpec]:
    for ports in (model.inputs, model.outputs):
        yield from (port for name, port in ports.items() if word in name)


def _holder(tree: Tree, config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the text model."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and number(part, "qk_rope_head_dim") is not None:
            return part
    raise RefusedError(
        f"{tree.path(CONFIG)}: has no qk_rope_head_dim, so the sizes of the new caches cannot be"
        f" said in it; {_INSTEAD}"
    )


def _describe(config: dict[str, Any], keys: Rows, values: Rows) -> None:
    (heads, key_width), (_, value_width) = keys, values
    config["num_key_value_heads"] = heads
    config["qk_nope_head_dim"] = key_width - config["qk_rope_head_dim"]
    config["qk_head_dim"] = key_width
    config["v_head_dim"] = value_width


KIND = Kind("optimum", opened, configs)
