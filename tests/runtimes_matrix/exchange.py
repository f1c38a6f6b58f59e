"""Models and calls in a folder, for runtimes that know nothing of this project.

NAME.onnx has NAME.json beside it, ``{"calls": [{"feeds": {name: {"type", "dims", "file"}}}]}``;
what runs it writes NAME.out.json, with ``outputs`` in their place. The files hold numbers as they
lie in memory. NAME.interface has the names of inputs and outputs in their order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.runtimes_matrix.forms import CALLS, Arrays, Case


def write(folder: Path, case: Case) -> None:
    """Write the model of a case, and all its calls."""
    model = case.model()
    onnx.save(model, folder / f"{case.id}.onnx")
    names = {
        end: [each.name for each in values]
        for end, values in (("inputs", model.graph.input), ("outputs", model.graph.output))
    }
    (folder / f"{case.id}.interface").write_text(json.dumps(names))
    calls = [
        {"feeds": _stored(folder, f"{case.id}.{place}", case.feeds(sizes))}
        for place, sizes in enumerate(CALLS)
    ]
    (folder / f"{case.id}.json").write_text(json.dumps({"calls": calls}))


def _stored(folder: Path, prefix: str, arrays: Arrays) -> dict[str, Any]:
    told = {}
    for name, array in arrays.items():
        file = f"{prefix}.{name}.bin"
        (folder / file).write_bytes(np.ascontiguousarray(array).tobytes())
        told[name] = {"type": array.dtype.name, "dims": list(array.shape), "file": file}
    return told


def check(folder: Path, case: Case) -> None:
    """Compare what was written with what the original returns."""
    calls = json.loads((folder / f"{case.id}.out.json").read_text())["calls"]
    for sizes, call in zip(CALLS, calls, strict=True):
        case.check(sizes, {name: _read(folder, told) for name, told in call["outputs"].items()})


def _read(folder: Path, told: dict[str, Any]) -> np.ndarray[Any, Any]:
    content = (folder / told["file"]).read_bytes()
    return np.frombuffer(content, told["type"]).reshape(told["dims"])
