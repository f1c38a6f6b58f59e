"""Runs portable programs in ExecuTorch, with its own operators and with XNNPACK.

    python -m tests.runtimes_matrix.run_executorch

Prints the largest error of each, relative to the spread of an output. The programs are made here:
PyTorch 2.13 cannot lower one with bounded lengths that was saved and loaded.
"""

import json

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

from tests.runtimes_matrix.test_torch import Model, arguments
from tests.runtimes_matrix.test_torch_runtimes import ONE_SEQUENCE, NewRows, exported, portable


def error(kind, partitioners):
    program = portable(exported(kind, bounded=True))
    lowered = to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch()
    loaded = Runtime.get().load_program(lowered.buffer)  # has to live as long as its method
    method, worst = loaded.load_method("forward"), 0.0
    for given in map(arguments, ONE_SEQUENCE):
        with torch.no_grad():
            wanted = kind()(*given)
        for got, right in zip(method.execute(list(given)), wanted, strict=True):
            assert got.shape == right.shape, (got.shape, right.shape)
            worst = max(worst, float((got - right).abs().max() / right.std()))
    return worst


if __name__ == "__main__":
    kinds = {"grown": Model, "joined outside": NewRows}
    backends = {"plain": [], "xnnpack": [XnnpackPartitioner()]}
    told = {
        f"{name} {backend}": error(kind, partitioners)
        for name, kind in kinds.items()
        for backend, partitioners in backends.items()
    }
    print(json.dumps(told))
