"""Runs the models of a folder (exchange.py) in whatever ONNX Runtime this interpreter has.

    python run_onnxruntime.py FOLDER [LIBRARY]

Needs nothing of this project. LIBRARY is a library of custom operators.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def run(path: Path, library: str | None) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(library)
        options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    calls = json.loads(path.with_suffix(".json").read_text())["calls"]
    told = [_call(session, path, place, each["feeds"]) for place, each in enumerate(calls)]
    path.with_suffix(".out.json").write_text(json.dumps({"calls": told}))


def _call(session, path, place, feeds):
    given = {
        name: np.fromfile(path.parent / each["file"], each["type"]).reshape(each["dims"])
        for name, each in feeds.items()
    }
    outputs = {}
    names = [each.name for each in session.get_outputs()]
    for name, array in zip(names, session.run(names, given), strict=True):
        file = f"{path.stem}.{place}.{name}.out.bin"
        array.tofile(path.parent / file)
        outputs[name] = {"type": array.dtype.name, "dims": list(array.shape), "file": file}
    return {"outputs": outputs}


if __name__ == "__main__":
    for model in sorted(Path(sys.argv[1]).glob("*.onnx")):
        run(model, sys.argv[2] if len(sys.argv) > 2 else None)
    print(ort.__version__)
