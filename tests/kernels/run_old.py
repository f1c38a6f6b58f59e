"""Runs models with a kernel library in whatever ONNX Runtime this interpreter has.

    python run_old.py LIBRARY FOLDER

Needs nothing of this project: FOLDER has NAME.onnx with NAME.npz, and gets NAME.out.npz.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort


def run(library: str, model: Path) -> None:
    options = ort.SessionOptions()
    options.register_custom_ops_library(library)
    options.optimized_model_filepath = str(model.with_suffix(".optimized"))
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    with np.load(model.with_suffix(".npz")) as feeds:
        outputs = session.run(None, dict(feeds))
    names = [output.name for output in session.get_outputs()]
    np.savez(model.with_suffix(".out.npz"), **dict(zip(names, outputs, strict=True)))


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[2]).glob("*.onnx")):
        run(sys.argv[1], path)
    print(ort.__version__)
