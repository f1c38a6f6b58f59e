"""Shapes of what conditionals return, declared: runtimes that infer none there ask for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.symbols import SymbolicShapes
from mla_opt.graphs.sizes import Expression

_TYPED_BY = {
    **dict.fromkeys(("Add", "Concat", "Div", "Expand", "Gather", "Identity", "MatMul", "Mul"), 0),
    **dict.fromkeys(("Reshape", "ScatterND", "Slice", "Softmax", "Split", "Squeeze", "Sub"), 0),
    **dict.fromkeys(("TensorScatter", "Transpose", "Unsqueeze"), 0),
    **dict.fromkeys(("CastLike", "Where"), 1),
}
"""Which operand has the type of the result, by operator: those of which bodies are made."""


def declare_shapes_of_conditionals(model: ir.Model) -> None:
    """Declare the shape of every output of an ``If`` that has none, as far as it can be told.

    The outputs of its branches, which have the same shape, are given it as well.
    """
    known = SymbolicShapes()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "If" and node.domain == "":
            for value, *made in zip(node.outputs, *_returned(node)):
                for each in (value, *made):
                    _declare(each, known.shape(value))


def _returned(node: ir.Node) -> Iterator[Sequence[ir.Value]]:
    """What each branch returns."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph().outputs


def _declare(value: ir.Value, shape: tuple[Expression, ...] | None) -> None:
    kind = element_type(value)
    if shape is not None and value.shape is None and kind is not None:
        value.shape, value.dtype = ir.Shape([dim(size) for size in shape]), kind


def element_type(value: ir.Value) -> ir.DataType | None:
    """The declared type of a value, or of what it is made of by operators that keep the type."""
    source: ir.Value | None = value
    while source is not None and source.dtype is None:
        node = source.producer()
        if node is None or node.domain != "":
            return None
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int())
        source = _of_same_type(node, source)
    return None if source is None else source.dtype


def _of_same_type(node: ir.Node, output: ir.Value) -> ir.Value | None:
    """A value that has the type of an output, in whatever graph; ``None`` where none is known."""
    if node.op_type == "If":
        return next(_returned(node))[output.index() or 0]
    place = _TYPED_BY.get(node.op_type)
    return None if place is None or place >= len(node.inputs) else node.inputs[place]


def dim(size: Expression) -> int | str | None:
    """A number, or an expression of the model's symbols; ``None`` where that is not known."""
    if isinstance(size, int):
        return size
    return None if sizes.is_open(size) else str(size)
