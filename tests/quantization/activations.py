"""Models whose activations ONNX Runtime's own quantizers have quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization import QuantFormat, QuantType

from tests.graphs.latent_block import Block, build, feeds


class Prompts(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    """A few inputs of a block to calibrate on."""

    def __init__(self, block: Block) -> None:
        sizes = ((2, 4, 3), (1, 5, 6), (2, 3, 8))
        self._left = [_finite(feeds(block, *each)) for each in sizes]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._left.pop() if self._left else None


def _finite(fed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Masks with numbers in them, as there is no grid that reaches to minus infinity."""
    return {
        name: np.maximum(array, -1e4).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in fed.items()
    }


def dynamic(model: onnx.ModelProto, folder: Path, **options: Any) -> onnx.ModelProto:
    """Quantized by ``quantize_dynamic``."""
    source, target = _paths(model, folder)
    ort_quantization.quantize_dynamic(source, target, **options)
    return onnx.load(target)


def static(model: onnx.ModelProto, block: Block, folder: Path, **options: Any) -> onnx.ModelProto:
    """Quantized by ``quantize_static``, calibrated on inputs of a block."""
    source, target = _paths(model, folder)
    ort_quantization.quantize_static(source, target, Prompts(block), **options)
    return onnx.load(target)


def _paths(model: onnx.ModelProto, folder: Path) -> tuple[Path, Path]:
    source, target = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(model, source)
    return source, target


#: What ``static`` may be asked for.
FORMATS: dict[str, dict[str, Any]] = {
    "8 bits, linear layers": {"op_types_to_quantize": ["MatMul"], "per_channel": True},
    "8 bits, everything": {},
    "16 bits, linear layers": {
        "op_types_to_quantize": ["MatMul"],
        "activation_type": QuantType.QUInt16,
        "weight_type": QuantType.QInt8,
        "extra_options": {"UseQDQContribOps": True},
    },
    "signed, symmetric": {
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "operators on integers": {"quant_format": QuantFormat.QOperator},
}


def quantized(block: Block, folder: Path, how: str) -> onnx.ModelProto:
    """A block's model, by ``quantize_dynamic`` or in one of `FORMATS`."""
    if how == "dynamic":
        return dynamic(build(block), folder)
    return static(build(block), block, folder, **FORMATS[how])
