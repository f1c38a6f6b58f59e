"""Verifying a model that was quantized after it was optimized: a verdict, whatever it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from typer.testing import CliRunner

from mla_opt.cli._app import app
from mla_opt.errors import InputError
from mla_opt.verification import verify
from mla_opt.verification.onnx.breaking import BreakableOnnx
from mla_opt.verification.onnx.quantized import quantized_after
from mla_opt.verification.site_records import read_sites
from tests.verify import toys

Quantize = Callable[[Path, Path], object]


class OnePrompt(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
    """Three tokens and an empty cache, once."""

    def __init__(self) -> None:
        self.left = [
            {
                "input_ids": np.asarray([[3, 8, 1]]),
                "attention_mask": np.ones((1, 3), np.int64),
                "past_0_keys": np.zeros((1, 1, 0, toys.LATENT), np.float32),
                "past_0_values": np.zeros((1, 1, 0, toys.ROPE), np.float32),
            }
        ]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


def dynamic(source: Path, target: Path) -> None:
    ort_quantization.quantize_dynamic(source, target)


def static(source: Path, target: Path) -> None:
    ort_quantization.quantize_static(source, target, OnePrompt())


def four_bits(source: Path, target: Path) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=16, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


QUANTIZERS: dict[str, tuple[Quantize, str]] = {
    "dynamic": (dynamic, "MatMulInteger"),
    "static": (static, "QuantizeLinear"),
}


@pytest.fixture
def optimized(tmp_path: Path) -> Path:
    path = tmp_path / "optimized.onnx"
    path.write_bytes(toys.optimized().SerializeToString())
    return path


@pytest.mark.parametrize("how", ["dynamic", "static"])
def test_it_fails_by_its_drift_and_says_how_to_compare(
    tmp_path: Path, optimized: Path, how: str
) -> None:
    quantize, kind = QUANTIZERS[how]
    quantized, original = tmp_path / "quantized.onnx", tmp_path / "original.onnx"
    original.write_bytes(toys.original().SerializeToString())
    quantize(optimized, quantized)
    report = verify(original, quantized)
    assert not report.passed
    assert all(control.applicable and control.detected for control in report.controls)
    result = CliRunner().invoke(app, ["verify", str(original), str(quantized)])
    assert result.exit_code == 4, result.stderr
    assert result.stderr.count("\n") == 1
    assert "quantized after it was optimized" in result.stderr
    assert kind in result.stderr
    assert "before it was quantized" in result.stderr
    told = " ".join(result.stdout.split())
    assert all(f"{output.name}" in told for output in report.outputs)


def test_it_passes_where_layers_alone_are_quantized(tmp_path: Path, optimized: Path) -> None:
    """They are known again, and the original is given the same; W_UK is in floating point."""
    quantized = tmp_path / "quantized.onnx"
    four_bits(optimized, quantized)
    report = verify(toys.original(), quantized)
    assert report.passed, report.failures
    assert report.borrowed > 2
    assert report.tolerance.floor == 2e-4
    assert all(control.detected for control in report.controls)
    assert f"whose {report.borrowed} layers have the same quantized weights" in report.note
    assert all(
        each.optimized is not None and each.optimized > 1e-3 for each in report.drift.outputs
    )


def test_another_matrix_is_not_taken_for_a_quantized_one(tmp_path: Path, optimized: Path) -> None:
    quantized = tmp_path / "quantized.onnx"
    four_bits(optimized, quantized)
    model = ir.load(quantized)
    name = next(n for n in model.graph.initializers if n.startswith("w_q") and "Q4" in n)
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    rolled = np.roll(tensor.numpy(), 1, axis=0)
    model.graph.initializers[name].const_value = ir.Tensor(rolled, name=name)
    report = verify(toys.original(), model, controls=False)
    assert not report.passed
    assert "quantize the original" in report.note


def test_a_drift_within_the_tolerance_passes(tmp_path: Path, optimized: Path) -> None:
    quantized = tmp_path / "quantized.onnx"
    dynamic(optimized, quantized)
    report = verify(toys.original(), quantized, tolerance=0.15)
    assert report.passed, report.failures
    assert "drift" in report.note


def test_what_the_original_has_already_is_not_told(tmp_path: Path, optimized: Path) -> None:
    quantized = tmp_path / "quantized.onnx"
    dynamic(optimized, quantized)
    model = ir.load(quantized)
    assert quantized_after(model, model) == ""
    assert verify(toys.original(), toys.optimized(), controls=False).note == ""


def test_the_integers_of_w_uk_are_rolled(tmp_path: Path, optimized: Path) -> None:
    quantized = tmp_path / "quantized.onnx"
    dynamic(optimized, quantized)
    model = ir.load(quantized)
    (site,) = read_sites(model)
    before = model.graph.initializers["w_uk_quantized"].const_value
    assert before is not None
    kept = before.numpy().copy()
    BreakableOnnx(model).shift_heads(site)
    after = model.graph.initializers["w_uk_quantized"].const_value
    assert after is not None
    np.testing.assert_array_equal(after.numpy(), np.roll(kept, 1, axis=0))


def test_a_control_says_that_quantization_left_nothing_to_break(
    tmp_path: Path, optimized: Path
) -> None:
    quantized = tmp_path / "quantized.onnx"
    dynamic(optimized, quantized)
    model = onnx.load(quantized)
    renamed = {"absorbed_query": "absorbed_query_q", "w_uk_quantized": "packed"}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    controls = verify(toys.original(), model).controls
    assert [control.applicable for control in controls] == [False] * 3
    assert all(control.reason.startswith("quantized: ") for control in controls)
    # In a model without quantization, the record is wrong.
    with pytest.raises(InputError, match="names query"):
        verify(toys.original(), toys.optimized(query="nowhere"))
