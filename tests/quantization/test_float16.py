"""float16 models on a CPU: what ONNX Runtime widens when, and that the report says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import mla_opt
from tests.graphs.latent_block import Block, build

BLOCK = Block(dtype="float16")
#: Numbers in W_UK or W_UV of the block: 3 heads, N 8, V 6, C 12.
MATRICES = {(3, 8, 12), (3, 12, 6)}


def optimized(block: Block, **options: Any) -> mla_opt.OptimizeResult:
    return mla_opt.optimize(build(block), verify=False, **options)


def kept_in_16_bits(model: ir.Model, folder: Path) -> set[tuple[int, ...]]:
    """Matrices that are still float16 once ONNX Runtime has loaded the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(mla_opt.kernel_library()))
    options.optimized_model_filepath = str(folder / "loaded.onnx")
    proto = ir.to_proto(model).SerializeToString()
    ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    stored = onnx.load(folder / "loaded.onnx").graph.initializer
    kept = {tuple(each.dims) for each in stored if each.data_type == onnx.TensorProto.FLOAT16}
    return kept & MATRICES


def test_matrices_of_two_forms_are_widened_at_every_step(tmp_path: Path) -> None:
    """What the report warns of: should this fail, ONNX Runtime has become better, and it may go."""
    assert kept_in_16_bits(optimized(BLOCK, weights="float").model, tmp_path) == MATRICES


@pytest.mark.parametrize(
    "options", [{"prefill": "absorbed"}, {"cache": "static"}, {"weights": "keep"}], ids=str
)
def test_those_of_one_form_are_not(options: dict[str, str], tmp_path: Path) -> None:
    assert not kept_in_16_bits(optimized(BLOCK, **options).model, tmp_path)


def test_the_report_says_so() -> None:
    (note,) = optimized(BLOCK).report.notes
    assert "float16, which ONNX Runtime's CPU provider computes in float32" in note
    assert not optimized(Block()).report.notes
