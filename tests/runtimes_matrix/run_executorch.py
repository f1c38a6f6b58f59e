"""Runs programs of a folder in ExecuTorch, with its own operators and with XNNPACK.

    python run_executorch.py FOLDER

Beside NAME.pt2 lies NAME.calls.pt, a list of (arguments, outputs); prints the largest error of each
program, relative to the spread of an output.
"""

import json
import sys
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime


def error(program, calls, partitioners):
    lowered = to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch()
    loaded = Runtime.get().load_program(lowered.buffer)  # has to live as long as its method
    method, worst = loaded.load_method("forward"), 0.0
    for arguments, wanted in calls:
        for got, right in zip(method.execute(list(arguments)), wanted, strict=True):
            assert got.shape == right.shape, (got.shape, right.shape)
            worst = max(worst, float((got - right).abs().max() / right.std()))
    return worst


told = {}
for path in sorted(Path(sys.argv[1]).glob("*.pt2")):
    calls = torch.load(path.with_suffix(".calls.pt"))
    for name, partitioners in (("plain", []), ("xnnpack", [XnnpackPartitioner()])):
        told[f"{path.stem} {name}"] = error(torch.export.load(path), calls, partitioners)
print(json.dumps(told))
