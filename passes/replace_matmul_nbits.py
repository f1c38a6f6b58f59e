"""On request, run MatMulNBits by the kernel library.

Before:   A, B, scales --> com.microsoft::MatMulNBits, accuracy_level 4 --> Y
After:    A, B, scales --> mla_opt::MatMulNBits --> Y

The weights stay as they are, bit for bit. Scales that are float16 numbers are stored as such, where
nothing else reads them. Where the kernel library is not there, or has no kernel for the processor,
ONNX Runtime's operator is what runs: it is the function body. Left alone are the products of other
accuracy levels, whose activations must not be rounded, and what the kernel does not have
(:mod:`mla_opt.operator.matmul_nbits`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import onnx_ir as ir

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.made_tensors import cast_tensor
from mla_opt.graphs.protocol import Graph
from mla_opt.operator.matmul_nbits import (
    SCALES,
    define_nbits,
    has_kernel,
    runtimes_nbits,
    take_over,
)
from mla_opt.pipeline import Pass, PassResult


@dataclass(frozen=True)
class ReplaceMatmulNbits(Pass):
    """Replace every MatMulNBits that the kernel has. For ONNX graphs."""

    name: ClassVar[str] = "replace_matmul_nbits"

    def run(self, graph: Graph) -> PassResult:
        """Rewrite the nodes, those in branches included; without a site, nothing."""
        if not graph.sites or not isinstance(cast(object, graph), OnnxGraph):
            return PassResult()
        model = cast(OnnxGraph, graph).model
        nodes = runtimes_nbits(model)
        fit = [node for node in nodes if has_kernel(node)]
        narrowed = sum(_narrow_scales(node) for node in fit)
        for node in fit:
            _declare_product(node)
            take_over(node)
        if fit:
            define_nbits(model)
        return PassResult(len(nodes), len(fit), notes=tuple(_notes(len(nodes), len(fit), narrowed)))


def _narrow_scales(node: ir.Node) -> bool:
    """Store float32 scales as float16 where each is such a number and nobody else reads them."""
    scales = node.inputs[SCALES]
    assert scales is not None
    if len(scales.uses()) != 1 or not scales.is_initializer() or scales.is_graph_input():
        return False
    assert scales.const_value is not None
    numbers = np.asarray(scales.const_value.numpy())
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float16)
    if not np.array_equal(narrow.astype(np.float32), numbers):
        return False
    scales.const_value = cast_tensor(scales.const_value, ir.DataType.FLOAT16, scales.name)
    scales.type = ir.TensorType(ir.DataType.FLOAT16)
    return True


def _declare_product(node: ir.Node) -> None:
    """Say what comes out: ONNX Runtime knows it of its own operator only."""
    (product, *_), first = node.outputs, node.inputs[0]
    if product.type is None:
        product.type = ir.TensorType(ir.DataType.FLOAT)
    if product.shape is None and first is not None and first.shape is not None:
        product.shape = ir.Shape([*first.shape[:-1], node.attributes.get_int("N", 0)])


def _notes(found: int, fit: int, narrowed: int) -> list[str]:
    notes = []
    if found > fit:
        notes.append(
            f"{found - fit} of {found} MatMulNBits stay ONNX Runtime's: the kernel has"
            " accuracy_level 4, 4 or 8 bits and blocks of 32 to 256, without g_idx"
        )
    if narrowed:
        notes.append(f"scales of {narrowed} MatMulNBits stored as float16, which they all are")
    return notes
