"""A model with its activations in floating point, to be compared in place of the deployed one.

Quantized activations are rounded to a grid: a difference of 1e-7 puts a number on the other side of
a step, and two models that compute the same are a step apart. So both are compared as they would be
without those roundings. Their weights are what they are stored as, to the last bit::

    MatMulNBits, accuracy_level 4   --->  MatMulNBits            (int8 activations inside)
    x --Q--> --DQ--> MatMul         --->  x --> MatMul           (and dynamic, and QLinear*)
    bfloat16 everywhere             --->  float32 everywhere     (no rounding after each operator)
"""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs.onnx.nbits import given_back
from mla_opt.graphs.onnx.quantization.operators import ROUNDING_OPERATORS
from mla_opt.graphs.onnx.quantization.roundings import Roundings
from mla_opt.graphs.onnx.widening import uses_bfloat16, widen

#: How ONNX Runtime computes DequantizeLinear and MatMul that it fuses; without it, in int8.
ACCURACY_OF_FUSED = ("session.qdq_matmulnbits_accuracy_level", "1")

_EXACT = (0, 1)
"""Accuracy levels of MatMulNBits that leave activations as they are."""


def float_twin(model: ir.Model, *, wide: bool = False) -> ir.Model:
    """The twin of a model; the very same where nothing rounds its activations.

    ``wide``: bfloat16 becomes float32. A twin shares the stored tensors but for those. It is to be
    run with `ACCURACY_OF_FUSED`.
    """
    wide = wide and uses_bfloat16(model)
    if not wide and not _rounds_inside(model):
        return model
    own = given_back(model)  # the kernel has no other accuracy level
    twin = model.clone() if own is model else own
    if wide:
        widen(twin)
    for rounding in Roundings.out_of(twin).taken:
        rounding.keep_name()
    for node in _all_nodes(twin):
        if _accuracy(node) not in _EXACT:
            del node.attributes["accuracy_level"]
    return twin


def rounds_activations(model: ir.Model) -> bool:
    """Whether anything rounds activations of a model as ONNX Runtime runs it by default."""
    return may_be_fused(model) or float_twin(model) is not model


def may_be_fused(model: ir.Model) -> bool:
    """Whether ONNX Runtime may fuse stored weights that a model dequantizes into int8 products.

    It does so with integers; floats of 8 bits it dequantizes.
    """
    kinds = [n.inputs[0] for n in _all_nodes(model) if n.op_type == "DequantizeLinear"]
    return any(
        value is not None and (value.dtype is None or value.dtype.is_integer()) for value in kinds
    )


def _rounds_inside(model: ir.Model) -> bool:
    return any(
        node.op_type in ROUNDING_OPERATORS or _accuracy(node) not in _EXACT
        for node in _all_nodes(model)
    )


def _accuracy(node: ir.Node) -> int:
    given = node.attributes.get("accuracy_level") if node.op_type == "MatMulNBits" else None
    return 0 if given is None or given.is_ref() else given.as_int()


def _all_nodes(model: ir.Model) -> list[ir.Node]:
    graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    return [node for graph in graphs for node in graph.all_nodes()]
