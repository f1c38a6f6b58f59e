"""Shapes of a model's values as expressions of its own symbols, and the integers they are made of.

Exporters compute reshape targets, slice bounds and scatter indices from the shapes of other values.
Here those integers are followed as expressions, so that what a node does to an axis is known for
every batch and length. Shapes that a file declares for computed values are claims, and not read.

A rule a family of operators, one for shapes (:mod:`mla_opt.graphs.onnx.shape_rules`) and one for
integers (:mod:`mla_opt.graphs.onnx.integer_rules`); what has no rule has a shape or a content of
its own that nothing else is equal to, or none at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx import integer_rules, shape_rules
from mla_opt.graphs.onnx.integers import Integers, from_array
from mla_opt.graphs.sizes import Expression

Shape = tuple[Expression, ...]

MOST_INTEGERS = 4096
"""Elements of the largest stored integer tensor that is read."""


class SymbolicShapes:
    """What is known of every value of a main graph; decided where it is asked for, and kept.

    ``fallback`` is asked for the shape of what has no rule: ``None`` where it does not know either.
    """

    def __init__(self, fallback: Callable[[ir.Value], Shape | None] = lambda value: None) -> None:
        self._shapes: dict[ir.Value, Shape | None] = {}
        self._integers: dict[ir.Value, Integers | None] = {}
        self._fresh = 0
        self._fallback = fallback

    def shape(self, value: ir.Value) -> Shape | None:
        """Sizes of a value; ``None`` where not even their number is known."""
        self._decide(value)
        return self._shapes[value]

    def integers(self, value: ir.Value) -> Integers | None:
        """Content of an integer value, as far as it follows from sizes and stored integers."""
        self._decide(value)
        return self._integers.get(value)

    def unknown(self) -> Expression:
        """A size that is equal to itself only."""
        self._fresh += 1
        return sizes.symbol(f"?{self._fresh}")

    def _decide(self, value: ir.Value) -> None:
        """Decide on a value, what it is computed from first; no depth of a graph stops it."""
        pending, path = [value], {value}
        while pending:
            current = pending[-1]
            node = current.producer()
            missing = next((each for each in _read(node) if each not in self._shapes), None)
            if missing is not None and missing not in path and current not in self._shapes:
                pending.append(missing)
                path.add(missing)
                continue
            path.discard(pending.pop())
            if current in self._shapes:
                continue
            if node is None or missing is not None:  # a malformed graph, in a circle
                self._shapes[current] = self._given(current) if node is None else None
            else:
                self._infer(node)
                self._shapes.setdefault(current, None)

    def _given(self, value: ir.Value) -> Shape | None:
        """What an input declares, or a stored tensor is."""
        tensor = value.const_value
        if tensor is not None and not value.is_graph_input():
            self._integers[value] = _stored(tensor)
            return tuple(tensor.shape.numpy())
        if value.shape is None:
            return None
        return tuple(self._declared(dim) for dim in value.shape)

    def _declared(self, dim: int | ir.SymbolicDim) -> Expression:
        if isinstance(dim, int):
            return dim if dim >= 0 else self.unknown()
        return self.unknown() if not dim.value else sizes.read(dim.value)

    def _infer(self, node: ir.Node) -> None:
        shapes = shape_rules.shapes_of(self, node)
        for place, output in enumerate(node.outputs):
            shape = shapes[place] if place < len(shapes) else None
            self._shapes[output] = self._fallback(output) if shape is None else shape
        if len(node.outputs) == 1:
            self._integers[node.outputs[0]] = integer_rules.content_of(self, node)


def _read(node: ir.Node | None) -> Iterator[ir.Value]:
    return (value for value in (() if node is None else node.inputs) if value is not None)


def _stored(tensor: ir.TensorProtocol) -> Integers | None:
    kind = tensor.dtype
    if not (kind.is_integer() or kind == ir.DataType.BOOL) or tensor.size > MOST_INTEGERS:
        return None
    return from_array(np.asarray(tensor.numpy()))
