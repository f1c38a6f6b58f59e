"""Runs the models of a folder (exchange.py) in IREE or in tract.

    python run_compilers.py iree|tract FOLDER

Needs nothing of this project: numpy, and iree-base-compiler[onnx] and iree-base-runtime, or tract.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

Call = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def iree(path: Path, inputs: list[str]) -> Call:
    import iree.runtime as runtime

    tools = Path(sys.executable).parent
    imported, compiled = path.with_suffix(".mlir"), path.with_suffix(".vmfb")
    subprocess.run([tools / "iree-import-onnx", path, "-o", imported], check=True)
    options = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu"]
    options.append("--iree-llvmcpu-target-cpu=host")
    subprocess.run([tools / "iree-compile", imported, "-o", compiled, *options], check=True)
    context = runtime.SystemContext(config=runtime.Config("local-task"))
    module = runtime.VmModule.mmap(context.instance, str(compiled))
    context.add_vm_module(module)
    (name,) = (each for each in module.function_names if not each.endswith(("$async", "__init")))
    function = context.modules[module.name][name]

    def call(feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        returned = function(*(feeds[each] for each in inputs))
        return [np.asarray(each) for each in returned]

    return call


def tract(path: Path, inputs: list[str]) -> Call:
    import tract as library

    model = library.onnx().load(str(path))
    order = [model.input_name(place) for place in range(model.input_count())]
    assert sorted(order) == sorted(inputs)
    runnable = model.into_model().into_runnable()
    return lambda feeds: [each.to_numpy() for each in runnable.run([feeds[name] for name in order])]


def run(path: Path, opened: Callable[[Path, list[str]], Call]) -> None:
    interface = json.loads(path.with_suffix(".interface").read_text())
    function = opened(path, interface["inputs"])
    calls = json.loads(path.with_suffix(".json").read_text())["calls"]
    told = []
    for place, call in enumerate(calls):
        given = {
            name: np.fromfile(path.parent / each["file"], each["type"]).reshape(each["dims"])
            for name, each in call["feeds"].items()
        }
        outputs = {}
        for name, array in zip(interface["outputs"], function(given), strict=True):
            file = f"{path.stem}.{place}.{name}.out.bin"
            array.tofile(path.parent / file)
            outputs[name] = {"type": array.dtype.name, "dims": list(array.shape), "file": file}
        told.append({"outputs": outputs})
    path.with_suffix(".out.json").write_text(json.dumps({"calls": told}))


if __name__ == "__main__":
    for model in sorted(Path(sys.argv[2]).glob("*.onnx")):
        run(model, {"iree": iree, "tract": tract}[sys.argv[1]])
