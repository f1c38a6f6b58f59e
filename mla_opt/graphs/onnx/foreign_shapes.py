"""Shapes of what operators make that the shape-inference library does not know.

Those of ONNX Runtime that quantizers put into models have rules here
(:mod:`mla_opt.graphs.onnx.shape_rules`). Of any other operator of a domain that is not ONNX's own,
the file's declaration is all there is. Of that, widths and symbols of the model's inputs are
believed for all sizes; any other number may be left over from an example, and is believed where
there is an example only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx import shape_rules
from mla_opt.graphs.onnx.integers import Integers
from mla_opt.graphs.sizes import Expression

Numbers = tuple[int, ...]

_STANDARD = ("", "ai.onnx")


def is_foreign(node: ir.Node | None) -> bool:
    """Whether an operator is none of ONNX's own."""
    return node is not None and node.domain not in _STANDARD


class BoundFacts:
    """What rules ask of operands, where every size is a number."""

    def __init__(self, shape: Callable[[ir.Value], Numbers | None]) -> None:
        self._shape = shape

    def shape(self, value: ir.Value) -> Numbers | None:
        """Sizes of a value."""
        return self._shape(value)

    def integers(self, value: ir.Value) -> Integers | None:
        """Nothing: no operator that is not ONNX's own takes its sizes from integers."""
        return None

    def unknown(self) -> Expression:
        """A size that is no number."""
        return sizes.symbol("?")


def bound_shapes(
    node: ir.Node, shape: Callable[[ir.Value], Numbers | None], named: Mapping[str, int]
) -> list[Numbers | None]:
    """Shapes of a node's outputs, by its rule, else as declared; ``named`` are known symbols."""
    ruled = shape_rules.shapes_of(BoundFacts(shape), node)
    made: list[Numbers | None] = []
    for place, output in enumerate(node.outputs):
        by_rule = ruled[place] if place < len(ruled) else None
        known = None if by_rule is None else _numbers(by_rule)
        made.append(_declared_numbers(output, named) if known is None else known)
    return made


def named_sizes(
    inputs: Iterable[ir.Value], shapes: Mapping[str, Sequence[int]]
) -> Mapping[str, int]:
    """What the symbols that inputs declare stand for under these shapes."""
    return {
        dim.value: size
        for value in inputs
        if value.shape is not None and value.name is not None
        for dim, size in zip(value.shape, shapes.get(value.name, ()))
        if isinstance(dim, ir.SymbolicDim) and dim.value
    }


def declared(
    value: ir.Value, inputs: Iterable[ir.Value], unknown: Callable[[], Expression]
) -> tuple[Expression, ...] | None:
    """The sizes of what a foreign operator makes, as far as the file's declaration is believed."""
    if value.shape is None or not is_foreign(value.producer()):
        return None
    symbols = {
        dim.value
        for each in inputs
        for dim in each.shape or ()
        if isinstance(dim, ir.SymbolicDim) and dim.value
    }
    last = len(value.shape) - 1

    def believed(place: int, dim: int | ir.SymbolicDim) -> Expression:
        if isinstance(dim, int):
            return dim if place == last and dim >= 0 else unknown()
        return sizes.read(dim.value) if dim.value in symbols else unknown()

    return tuple(believed(place, dim) for place, dim in enumerate(value.shape))


def _declared_numbers(value: ir.Value, named: Mapping[str, int]) -> Numbers | None:
    if value.shape is None:
        return None
    return _numbers(
        dim if isinstance(dim, int) else named.get(dim.value or "") for dim in value.shape
    )


def _numbers(shape: Iterable[Expression]) -> Numbers | None:
    known = tuple(sizes.plain(size) for size in shape)
    return known if all(isinstance(size, int) for size in known) else None
