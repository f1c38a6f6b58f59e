"""Stored numbers of which there is one for each column of rows, and that something multiplies with.

Read are operands of a Mul, a Div's divisor, and the scales of a DequantizeLinear. Whether a matrix
has been multiplied by them is told by its numbers, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

#: Operands that may be such factors, by their places, and whether it is divided by them.
_PLACES = {
    ("", "Mul"): ((0, 1), False),
    ("", "Div"): ((1,), True),
    ("", "DequantizeLinear"): ((1,), False),
}


def read_factors(model: ir.Model) -> list[tuple[ir.TensorProtocol, bool]]:
    """Return every stored vector that may be factors, each once, in the order of the graph."""
    found: dict[tuple[str | None, bool], tuple[ir.TensorProtocol, bool]] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        places, divides = _PLACES.get((node.domain, node.op_type), ((), False))
        for place in places:
            tensor = _vector(node.inputs[place])
            if tensor is not None:
                found.setdefault((tensor.name, divides), (tensor, divides))
    return list(found.values())


def of_width(
    factors: list[tuple[ir.TensorProtocol, bool]], columns: int
) -> Iterator[npt.NDArray[np.float64]]:
    """Those of so many columns; none of them is 0, or no number."""
    for tensor, divides in factors:
        if tensor.size != columns:
            continue
        numbers = np.asarray(tensor.numpy()).reshape(-1).astype(np.float64)
        if np.isfinite(numbers).all() and (numbers != 0).all():
            yield 1.0 / numbers if divides else numbers


def _vector(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The content of a stored tensor of floats with one axis that is longer than 1."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or not tensor.dtype.is_floating_point():
        return None
    return tensor if tensor.size > 1 and max(tensor.shape.numpy()) == tensor.size else None
