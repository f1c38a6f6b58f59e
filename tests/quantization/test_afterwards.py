"""Models that are quantized after they were optimized, and verified against the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import mla_opt
from mla_opt.verification import verify
from tests.graphs.latent_block import Block, build
from tests.quantization.activations import dynamic, static
from tests.quantization.stored import Storage, store

BLOCK = Block(heads=4, nope=16, rope=8, value=16, latent=64, hidden=48, q_lora=32)


def four_bits(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    quantizer = MatMulNBitsQuantizer(model, block_size=16, is_symmetric=True)
    quantizer.process()
    return quantizer.model.model


def linear_layers(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    return static(model, BLOCK, folder, op_types_to_quantize=["MatMul"])


HOW: dict[str, Callable[[onnx.ModelProto, Path], onnx.ModelProto]] = {
    "MatMulNBits": four_bits,
    "DequantizeLinear in another opset": lambda m, _: store(m, Storage("INT8", "column")),
    "quantize_dynamic": dynamic,
    "quantize_static": linear_layers,
}


@pytest.fixture(scope="module")
def optimized() -> bytes:
    """Serialized, as quantizers change what they are given."""
    result = mla_opt.optimize(build(BLOCK), verify=False)
    return ir.to_proto(result.model).SerializeToString()


@pytest.mark.parametrize("how", HOW)
def test_it_is_verified_and_its_drift_told(tmp_path: Path, optimized: bytes, how: str) -> None:
    quantized = HOW[how](onnx.ModelProto.FromString(optimized), tmp_path)
    report = verify(build(BLOCK), quantized)
    assert report.passed, report.failures
    assert report.borrowed == 4
    assert max(output.relative for output in report.outputs) < 2e-4
    assert all(control.applicable and control.detected for control in report.controls)
    (drift,) = [each for each in report.drift.outputs if each.name == "hidden"]
    assert drift.original is not None
    assert drift.optimized is not None
    assert drift.original < 1e-5 < 1e-3 < drift.optimized
