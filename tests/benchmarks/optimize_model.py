"""Read, optionally optimize, and write one model; prints what each part took as JSON.

    python -m tests.benchmarks.optimize_model IN.onnx OUT.onnx [absorb=none ...]
    python -m tests.benchmarks.optimize_model IN.onnx OUT.onnx --plain

`--plain` only reads and writes: what every tool must do. Imports are not timed, in neither.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir

from mla_opt.benchmarking.memory import memory, reset_peak

#: Initializers below this stay inside the file.
SMALL = 1024


def optimizer(options: dict[str, Any]) -> Callable[[Path], onnx_ir.Model]:
    """`mla_opt.optimize` with its modules loaded."""
    from mla_opt import optimize

    def make(path: Path) -> onnx_ir.Model:
        model: onnx_ir.Model = optimize(path, verify=False, **options).model
        return model

    return make


def write(model: onnx_ir.Model, path: Path) -> None:
    """Save with the weights in one file beside."""
    onnx_ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=SMALL)


def main(source: Path, target: Path, arguments: list[str]) -> None:
    """Do it, timed."""
    plain = arguments == ["--plain"]
    make = onnx_ir.load if plain else optimizer(dict(a.split("=", 1) for a in arguments))
    reset_peak()
    start, busy = time.perf_counter(), time.process_time()
    model = make(source)
    made = time.perf_counter()
    write(model, target)
    written = time.perf_counter()
    report = {
        "make_s": made - start,
        "write_s": written - made,
        "cpu_s": time.process_time() - busy,
        "peak_mb": memory("VmHWM"),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
