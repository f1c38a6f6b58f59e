"""By which a saved cache knows the model that it came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from mla_opt.graphs.interface.interface import ModelInterface

#: Weights that are looked at, and elements of each: enough to tell two checkpoints apart without
#: reading gigabytes.
MOST_WEIGHTS = 64
ELEMENTS = 256


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Two hashes in hex.

    Attributes:
        states: of the names, types and widths of the states.
        weights: of samples of the weights; empty where they were out of reach.
    """

    states: str
    weights: str


def fingerprint(model: ir.Model, interface: ModelInterface) -> Fingerprint:
    """Read the fingerprint of a model."""
    states = [
        (s.input.name, str(s.input.dtype), s.kind, s.growth_axis, _numbers(s.input.sizes))
        for s in interface.states
    ]
    return Fingerprint(hashlib.sha256(repr(states).encode()).hexdigest(), _weights(model))


def _numbers(sizes: tuple[object, ...]) -> list[object]:
    return [size if isinstance(size, int) else None for size in sizes]


def _weights(model: ir.Model) -> str:
    """Hash the beginnings of the largest weights, by name."""
    values = model.graph.initializers.values()
    tensors = [v.const_value for v in values if v.const_value is not None and v.const_value.size]
    if not tensors:
        return ""
    numeric = [tensor for tensor in tensors if tensor.dtype != ir.DataType.STRING]
    largest = sorted(numeric, key=lambda tensor: (-tensor.nbytes, tensor.name or ""))
    digest = hashlib.sha256()
    for tensor in largest[:MOST_WEIGHTS]:
        # Mapped from the file: only the pages that are looked at are read.
        start = np.ascontiguousarray(tensor.numpy().reshape(-1)[:ELEMENTS])
        digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(start.tobytes())
    return digest.hexdigest()
