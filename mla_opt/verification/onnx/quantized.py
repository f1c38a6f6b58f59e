"""What quantization leaves of a model: which of its operators are there, and where weights went."""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs.onnx.quantization.operators import quantization_operators


def quantized_name(name: str) -> str:
    """How ONNX Runtime's quantizer calls the integers that it puts in the place of a tensor."""
    return f"{name}_quantized"


def quantized_after(original: ir.Model, optimized: ir.Model) -> str:
    """Say which operators of quantization the optimized model has, if the original has none.

    Optimizing adds none to such a model, so these came later. Empty where there are none.
    """
    if quantization_operators(original):
        return ""
    found = quantization_operators(optimized)
    return ", ".join(f"{count} {kind}" for kind, count in found.most_common())
