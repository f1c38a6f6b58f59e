"""What quantization leaves of a model: which of its operators are there, and where weights went."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

#: Operators that read or make quantized numbers, ONNX's and ONNX Runtime's.
_OPERATORS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
        "QMoE",
        "QuantizeLinear",
    }
)
#: QLinearMatMul, QLinearConv, QLinearConcat, ...
_PREFIX = "QLinear"


def quantized_name(name: str) -> str:
    """How ONNX Runtime's quantizer calls the integers that it puts in the place of a tensor."""
    return f"{name}_quantized"


def quantization_operators(model: ir.Model) -> Counter[str]:
    """Count the operators of quantization, those in branches included."""
    kinds = (node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))
    return Counter(kind for kind in kinds if kind in _OPERATORS or kind.startswith(_PREFIX))


def quantized_after(original: ir.Model, optimized: ir.Model) -> str:
    """Say which operators of quantization the optimized model has, if the original has none.

    Optimizing adds none to such a model, so these came later. Empty where there are none.
    """
    if quantization_operators(original):
        return ""
    found = quantization_operators(optimized)
    return ", ".join(f"{count} {kind}" for kind, count in found.most_common())
