"""Quantized activations: what is compared rounds none of them, what is deployed drifts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

import mla_opt
from mla_opt.verification import verify
from mla_opt.verification.onnx.twins import float_twin, may_be_fused
from mla_opt.verification.precision import weight_bytes
from tests.verify import toys


def four_bits(accuracy: int | None) -> onnx.ModelProto:
    config = DefaultWeightOnlyQuantConfig(block_size=16, is_symmetric=True, accuracy_level=accuracy)
    quantizer = MatMulNBitsQuantizer(toys.original(), algo_config=config)
    quantizer.process()
    return quantizer.model.model


def integers_in_front() -> onnx.ModelProto:
    """Weights of 8 bits with a DequantizeLinear each, which ONNX Runtime fuses into products."""
    model = toys.original()
    weights = {t.name: t for t in model.graph.initializer}
    read = [node.input[1] for node in model.graph.node if node.op_type == "MatMul"]
    for name in {name for name in read if name in weights}:
        array = onnx.numpy_helper.to_array(weights[name])
        scale = np.float32(np.abs(array).max() / 127)
        stored = np.round(array / scale).astype(np.int8)
        model.graph.initializer.remove(weights[name])
        model.graph.initializer.extend(
            [
                onnx.numpy_helper.from_array(stored, f"{name}_stored"),
                onnx.numpy_helper.from_array(scale, f"{name}_scale"),
            ]
        )
        node = onnx.helper.make_node(
            "DequantizeLinear", [f"{name}_stored", f"{name}_scale"], [name]
        )
        model.graph.node.insert(0, node)
    return model


ROUNDING: dict[str, Callable[[], onnx.ModelProto]] = {
    "MatMulNBits of accuracy level 4": lambda: four_bits(4),
    "fused by ONNX Runtime": integers_in_front,
}


@pytest.mark.parametrize("how", ROUNDING)
def test_both_are_compared_without_roundings_and_the_drift_is_told(how: str) -> None:
    result = mla_opt.optimize(ROUNDING[how]())
    verification = result.report.verification
    assert verification is not None
    assert verification["passed"]
    outputs = verification["outputs"]
    assert max(output["relative"] for output in outputs) < 2e-5
    assert all(output["tolerance"] <= 2e-4 for output in outputs)
    controls = verification["controls"]
    assert controls
    assert all(each["applicable"] and each["detected"] for each in controls)
    drift = {each["name"]: each for each in verification["drift"]["outputs"]}
    assert 1e-4 < drift["logits"]["original"] < 0.1
    assert 1e-4 < drift["logits"]["optimized"] < 0.1


def test_what_rounds_nothing_is_its_own_twin() -> None:
    for model in (toys.original(), four_bits(None), four_bits(1)):
        opened = ir.from_proto(model)
        assert float_twin(opened) is opened
        assert not may_be_fused(opened)
    report = verify(toys.original(), toys.optimized(), controls=False)
    assert not report.drift
    assert report.as_dict()["drift"] is None


def test_a_twin_leaves_the_model_as_it_is() -> None:
    model = ir.from_proto(four_bits(4))
    twin = float_twin(model)
    levels = [
        [n.attributes.get("accuracy_level") for n in each.graph if n.op_type == "MatMulNBits"]
        for each in (model, twin)
    ]
    assert levels[0]
    assert all(level is not None for level in levels[0])
    assert len(levels[1]) == len(levels[0])
    assert not any(levels[1])


def test_weights_of_eight_bits_say_nothing_of_the_precision() -> None:
    model = ir.from_proto(toys.original())
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and tensor.size > 50:
            stored = tensor.numpy().astype(ir.DataType.FLOAT8E4M3FN.numpy())
            value.const_value = ir.Tensor(stored, dtype=ir.DataType.FLOAT8E4M3FN)
    assert weight_bytes(model) == 4
