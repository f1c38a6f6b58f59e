"""Shapes of products."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.contractions import einsum_labels
from mla_opt.graphs.onnx.shape_rules.elementwise import broadcast_shapes
from mla_opt.graphs.onnx.shape_rules.facts import Facts, Shape, attribute, shape_at
from mla_opt.graphs.sizes import Expression


def of_matmul(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``MatMul``: the axes in front broadcast."""
    left, right = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if left is None or right is None or not left or not right:
        return ()
    left = _turned(node, "A", left)
    right = _turned(node, "B", right)
    rows = left[-2:-1] if len(left) > 1 else ()
    columns = right[-1:] if len(right) > 1 else ()
    batch = broadcast_shapes([left[:-2], right[:-2]])
    return ((*batch, *rows, *columns),)


def _turned(node: ir.Node, side: str, shape: Shape) -> Shape:
    """FusedMatMul reads its operands transposed, if it says so."""
    if len(shape) > 1 and attribute(node, f"trans{side}", 0):
        return (*shape[:-2], shape[-1], shape[-2])
    return shape


def of_gemm(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Gemm``: two axes."""
    left, right = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return ()
    rows = left[1] if attribute(node, "transA", 0) else left[0]
    columns = right[0] if attribute(node, "transB", 0) else right[1]
    return ((rows, columns),)


def of_quantized_matmul(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``MatMulNBits`` and the like: the number of columns is an attribute."""
    shape, columns = shape_at(facts, node, 0), attribute(node, "N")
    return ((*shape[:-1], columns),) if shape and columns else ()


def of_einsum(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Einsum``: by its labels."""
    shapes = [None if value is None else facts.shape(value) for value in node.inputs]
    ranks = [None if shape is None else len(shape) for shape in shapes]
    labels = einsum_labels(attribute(node, "equation", ""), ranks)
    if labels is None or any(shape is None for shape in shapes):
        return ()
    known: dict[str, Expression] = {}
    for names, shape in zip(labels[0], shapes):
        if shape is None or len(names) != len(shape):
            return ()
        for name, size in zip(names, shape):
            known[name] = sizes.broadcast(known[name], size) if name in known else size
    if any(name not in known for name in labels[1]):
        return ()
    return (tuple(known[name] for name in labels[1]),)


def of_conv(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Conv``: known for kernels of one."""
    shape, weight = shape_at(facts, node, 0), shape_at(facts, node, 1)
    if shape is None or weight is None:
        return ()
    pointwise = (
        all(size == 1 for size in weight[2:])
        and all(step == 1 for step in attribute(node, "strides", ()) or ())
        and not any(attribute(node, "pads", ()) or ())
    )
    if pointwise:
        return ((shape[0], weight[0], *shape[2:]),)
    return ((shape[0], weight[0], *(facts.unknown() for _ in shape[2:])),)
