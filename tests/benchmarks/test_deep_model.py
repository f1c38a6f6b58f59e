"""The deep models of the benchmarks: solid ones are fit to be verified, controls and all."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import mla_opt
from tests.benchmarks import deep_model
from tests.benchmarks.dims import Dims

#: Real widths of heads and of the latent.
DIMS = Dims(1, 64, 8, 128, 64, 128, 512, None, 1, 32)


@pytest.mark.parametrize("kind", deep_model.KINDS)
def test_a_solid_model_is_verified_with_every_control(tmp_path: Path, kind: str) -> None:
    source = deep_model.make(kind, DIMS, tmp_path / "model.onnx", solid=True)
    numbers = onnx.TensorProto.FLOAT if kind == "float32" else onnx.TensorProto.FLOAT16
    made = onnx.load(source, load_external_data=False).graph
    assert made.output[0].type.tensor_type.elem_type == numbers
    proof = mla_opt.optimize(source, verify="whole").report.verification
    assert proof is not None
    assert proof["passed"]
    assert [each["detected"] for each in proof["controls"]] == [True] * 3
