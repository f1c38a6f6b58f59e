"""The matrix of a linear layer, however it is stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Binding, Graph
from mla_opt.handles import Array, Node
from mla_opt.matching.not_latent import NotLatentError


@dataclass(frozen=True, slots=True)
class LinearMatrix:
    """``result = row @ weight + bias``: ``weight [in, out]``, ``bias [out]`` or ``None``."""

    weight: Array
    bias: Array | None


def linear_matrix(graph: Graph, binding: Binding, linear: Node) -> LinearMatrix:
    """Read the matrix of a linear layer; one whose form nobody knows is run on a basis.

    Raises:
        NotLatentError: the sizes of what such a layer reads are not known.
    """
    operation = graph.operation(linear)
    assert isinstance(operation, op.Linear)
    if operation.plain:
        weight = graph.constant(operation.weight)
        if weight is None:
            (weight,) = binding.run([operation.weight], {})
        if weight.ndim == 2:
            return LinearMatrix(weight.T if operation.transposed else weight, None)
    packed = graph.packed_rows(linear) if operation.packed else None
    if packed is not None:
        return LinearMatrix(packed.T, None)
    return _by_basis(graph, binding, linear, operation)


def multiplies_rows(graph: Graph, linear: op.Linear) -> bool:
    """Whether a layer multiplies the last axis of what it reads by one matrix for all rows.

    What comes of it is behind the other axes, and those are in their order.
    """
    axes = linear.axes
    if axes is None:
        return linear.plain
    *outer, summed = axes.first
    before, behind = axes.result[: len(outer)], axes.result[len(outer) :]
    if list(before) != outer or summed in axes.result or not set(behind) <= set(axes.second):
        return False
    shared = [place for place, label in enumerate(axes.second) if label in outer]
    stored = graph.sizes(linear.weight) if shared else ()
    return stored is not None and all(stored[place] == 1 for place in shared)


def _by_basis(graph: Graph, binding: Binding, linear: Node, operation: op.Linear) -> LinearMatrix:
    """Send a zero row and the basis through the layer, as many rows a run as the binding has."""
    shape = binding.shape(operation.data)
    if not shape or 0 in shape:
        name = operation.data.name
        raise NotLatentError("unknown_shape", f"the shape of {name} cannot be inferred", (linear,))
    room, width = int(np.prod(shape[:-1])), shape[-1]
    rows = np.concatenate([np.zeros((1, width)), np.eye(width)]).astype(graph.dtype(operation.data))
    padding = np.zeros((-len(rows) % room, width), dtype=rows.dtype)
    chunks = np.concatenate([rows, padding]).reshape(-1, *shape)
    (result,) = graph.results(linear)
    outs = [binding.run([result], {operation.data: chunk})[0] for chunk in chunks]
    seen = np.concatenate([out.reshape(room, -1) for out in outs])[: len(rows)]
    offset = seen[0]
    return LinearMatrix(seen[1:] - offset, offset if np.any(offset) else None)
