"""Exports that are kept beside the sources, so that most tests need not wait for an exporter.

    python -m tests.exports.kept [NAME ...]

makes the files of `kept/` anew, all of them or those named, with the libraries that are installed;
those of transformers 4.57 with the Python that has it (`expanded_cache`).
Random weights are not kept: each is noise that depends on the name of a parameter (`weights`), so
that the name is enough. What is unpacked is the export, number for number; of the folders that it
says its code was in, the last parts are left.

Variable MLA_OPT_EXPORT_ANEW set: nothing kept is used, everything is exported.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from tests.exports.weights import noise

FOLDER = Path(__file__).with_name("kept")
ANEW_VARIABLE = "MLA_OPT_EXPORT_ANEW"
MODEL, WEIGHTS = "model.onnx", "weights.json"
HERE = "--here"
#: Numbers from which a weight is looked for among the parameters.
LARGE = 64
#: The beginning of a path up to its packages, or to this repository.
PATH = re.compile(r"(?<![^\"\s])/[^\"\s]*/(?:site-packages/|(?=tests/))")
#: A file is the same whenever it is made.
TIME = (1980, 1, 1, 0, 0, 0)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Origin:
    """Which parameter an initializer is, with its axes in another order."""

    parameter: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def array(self, dtype: np.dtype[Any]) -> Array:
        """The numbers."""
        tensor = noise(self.parameter, self.shape)
        return np.ascontiguousarray(tensor.numpy().transpose(self.axes)).astype(dtype)


def there(name: str) -> bool:
    """Whether this export is kept, and to be used."""
    return not os.environ.get(ANEW_VARIABLE) and _file(name).exists()


@functools.cache
def digest(name: str) -> str:
    """Ten digits that change when what is kept does."""
    return hashlib.sha256(_file(name).read_bytes()).hexdigest()[:10]


def unpack(name: str, path: Path) -> None:
    """Write the export."""
    with zipfile.ZipFile(_file(name)) as file:
        model = onnx.load_from_string(file.read(MODEL))
        origins = json.loads(file.read(WEIGHTS))
    for tensor in model.graph.initializer:
        if tensor.name in origins:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            known = origins[tensor.name]
            origin = Origin(known["parameter"], tuple(known["shape"]), tuple(known["axes"]))
            tensor.raw_data = origin.array(dtype).tobytes()
    path.write_bytes(model.SerializeToString(deterministic=True))


def pack(name: str, path: Path, module: torch.nn.Module) -> None:
    """Keep an export of a module whose weights are `weights.randomize`'s."""
    model = onnx.load(path)
    known = dict(_views(module, {tensor.data_type for tensor in model.graph.initializer}))
    origins = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        origin = known.get((array.shape, array.tobytes())) if array.size >= LARGE else None
        if origin is not None:
            tensor.raw_data = b""
            origins[tensor.name] = vars(origin)
    for place in places(model):
        place.value = PATH.sub("", place.value)
    FOLDER.mkdir(exist_ok=True)
    contents = {
        MODEL: model.SerializeToString(deterministic=True),
        WEIGHTS: json.dumps(origins, sort_keys=True),
    }
    with zipfile.ZipFile(_file(name), "w") as file:
        for each, data in contents.items():
            file.writestr(zipfile.ZipInfo(each, TIME), data, zipfile.ZIP_DEFLATED, 9)


def places(model: onnx.ModelProto) -> Iterator[onnx.StringStringEntryProto]:
    """Where exporters note from which line of code a node comes."""
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            yield from (each for each in node.metadata_props if "/" in each.value)


def _file(name: str) -> Path:
    return FOLDER / f"{name}.zip"


def _views(
    module: torch.nn.Module, types: set[int]
) -> Iterator[tuple[tuple[tuple[int, ...], bytes], Origin]]:
    """Every parameter, with its axes in every order, in every type."""
    numpy_types = {onnx.helper.tensor_dtype_to_np_dtype(each) for each in types}
    floats = [each for each in numpy_types if each.kind == "f"]
    for name, parameter in module.named_parameters():
        if parameter.numel() < LARGE:
            continue
        for axes, dtype in itertools.product(itertools.permutations(range(parameter.ndim)), floats):
            origin = Origin(name, tuple(parameter.shape), axes)
            array = origin.array(dtype)
            yield (array.shape, array.tobytes()), origin


def exports() -> dict[str, Callable[[], tuple[Path, torch.nn.Module]]]:
    """How each that is kept is made: its file, and the module that it was exported from."""
    from tests.end_to_end.selection import KEPT, KEPT_CONTROLS
    from tests.exports import cache, controls
    from tests.exports.families import FAMILIES

    found: dict[str, Callable[[], tuple[Path, torch.nn.Module]]] = {
        spec.id: lambda spec=spec: (  # type: ignore[misc]
            cache.exported(spec),
            FAMILIES[spec.family].build(spec.attention),
        )
        for spec in KEPT
    }
    for name, opset in KEPT_CONTROLS:
        found[controls.stem(name, opset)] = lambda name=name, opset=opset: (  # type: ignore[misc]
            controls.exported_control(name, opset),
            inner(controls.by_name(name).build()),
        )
    return found


def inner(module: Any) -> torch.nn.Module:
    """What `randomize` was given: the model in a wrapper, or the module itself."""
    for attribute in ("model", "block"):
        if isinstance(getattr(module, attribute, None), torch.nn.Module):
            return getattr(module, attribute)  # type: ignore[no-any-return]
    return module  # type: ignore[no-any-return]


def main(names: list[str]) -> None:
    """Make them; with ``HERE`` first, by the libraries of this Python whatever the export is of."""
    from tests.exports.cache import run_module
    from tests.exports.expanded_cache import interpreter

    os.environ[ANEW_VARIABLE] = "1"
    here = names[:1] == [HERE]
    for name, make in exports().items():
        if names and name not in names:
            continue
        if early(name) and not here:
            # Its parameters have other names.
            run_module(interpreter(), "tests.exports.kept", HERE, name)
        else:
            pack(name, *make())
        print(f"{_file(name).stat().st_size:8} {name}")


def early(name: str) -> bool:
    """Whether it is an export by transformers 4.57."""
    from tests.end_to_end.selection import EXPANDED

    return name in {spec.id for spec in EXPANDED}


if __name__ == "__main__":
    main(sys.argv[1:])
