"""The operators of quantization, ONNX's and ONNX Runtime's."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

#: Operators that read or make quantized numbers.
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
#: Those that put activations on a grid.
ROUNDING_OPERATORS = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeMatMul", "QuantizeLinear"})
#: QLinearMatMul, QLinearConv, QLinearConcat, ...
_PREFIX = "QLinear"


def quantization_operators(model: ir.Model) -> Counter[str]:
    """Count the operators of quantization, those in branches included."""
    kinds = (node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph))
    return Counter(filter(is_quantization, kinds))


def is_quantization(kind: str) -> bool:
    """Whether an operator reads or makes quantized numbers."""
    return kind in _OPERATORS or kind.startswith(_PREFIX)
