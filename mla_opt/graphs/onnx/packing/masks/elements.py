"""Elements of masks, and what a rule may ask of whoever reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.packing.masks.order import Case
from mla_opt.graphs.sizes import Expression
from mla_opt.handles import Array

Place = tuple[Expression | None, ...] | None
"""A place of a value, axis by axis; ``None`` where it is not known, as far as it is not."""

Element = bool | float | Expression
"""What a value has there: a truth, a number, or an integer that is an expression."""


class UnreadMaskError(Exception):
    """An element of a mask cannot be told; says in words why."""


class Reader(Protocol):
    """Reads elements of the values of a graph, in a case."""

    @property
    def graph(self) -> OnnxGraph:
        """The model."""

    @property
    def case(self) -> Case:
        """Which token comes first."""

    def at(self, value: ir.Value, place: Place) -> Element:
        """The element of a value at a place. Raises `UnreadMaskError`."""

    def shape(self, value: ir.Value) -> tuple[Expression, ...] | None:
        """Sizes of a value, in a call with one sequence."""

    def named(self, number: Element) -> Element:
        """A number in the symbols of one sequence."""


Rule = Callable[[Reader, ir.Node, Place], Element]
"""The element that a node makes, of the elements of what it reads."""


def broadcast(reader: Reader, value: ir.Value, result: ir.Value, place: Place) -> Place:
    """The place of an operand that is broadcast, by that of the result.

    An axis of a size that may be 1 or the result's has no known place.
    """
    shape, whole = reader.shape(value), reader.shape(result)
    if shape == ():
        return ()
    if shape is None or whole is None or place is None or len(shape) > len(place):
        return None
    behind = len(place) - len(shape)
    return tuple(
        0 if size == 1 else at if sizes.same(size, of_result) else None
        for size, of_result, at in zip(shape, whole[behind:], place[behind:])
    )


def operand(reader: Reader, node: ir.Node, place: Place, at: int) -> Element:
    """The element of one operand that is broadcast to the result."""
    value = node.inputs[at]
    assert value is not None
    return reader.at(value, broadcast(reader, value, node.outputs[0], place))


def plain(number: Element) -> Element:
    """NumPy's truths as Python's."""
    return bool(number) if isinstance(number, np.bool_) else number


def of_array(array: Array, place: Place, value: ir.Value) -> Element:
    """An element of a stored tensor: any of it, where all are the same."""
    if array.size and bool((array == array.reshape(-1)[0]).all()):
        found = array.reshape(-1)[0]
    elif place is not None and all(isinstance(at, int) for at in place):
        found = array[place]
    else:
        raise UnreadMaskError(f"it is made of {value.name}, which is stored")
    if array.dtype == np.bool_:
        return bool(found)
    return int(found) if array.dtype.kind in "iu" else float(found)
