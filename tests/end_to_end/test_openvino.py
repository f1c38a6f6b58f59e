"""The portable target in OpenVINO, which inlines no local functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import mla_opt
from tests.end_to_end.conftest import export_file
from tests.end_to_end.driving import Generator, Run, largest_gap, onnxruntime_run, prompt
from tests.exports.feeds import Feeds
from tests.exports.spec import ExportSpec

openvino = pytest.importorskip("openvino")

#: Logits have a spread of about 2; measured: 2e-6 to 7e-6.
TOLERANCE = 5e-5
#: The longest prompt is above the crossover of 41 tokens: the expanded branch runs, too.
SIZES = ((1, 7, 0), (2, 9, 3), (2, 1, 0), (1, 50, 0))
CASES = [
    (ExportSpec("deepseek_v3"), {}),
    (ExportSpec("deepseek_v3"), {"cache": "packed", "absorb": "fold"}),
    (ExportSpec("deepseek_v3", exporter="torchscript"), {"prefill": "absorbed"}),
    (ExportSpec("minicpm3", opset=20), {"cache": "packed"}),
]


def openvino_run(model: bytes) -> Run:
    """Compile for the CPU; without the hint OpenVINO may compute in bfloat16."""
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )

    def run(feeds: Feeds) -> Feeds:
        results = compiled({name: np.ascontiguousarray(value) for name, value in feeds.items()})
        return {port.get_any_name(): np.array(results[port]) for port in compiled.outputs}

    return run


@pytest.mark.parametrize(
    ("spec", "options"),
    CASES,
    ids=lambda value: getattr(value, "id", None) or "-".join(value.values()),
)
def test_portable_agrees_with_the_original(spec: ExportSpec, options: dict[str, Any]) -> None:
    source = onnx.load(export_file(spec))
    original = onnxruntime_run(source.SerializeToString())
    result = mla_opt.optimize(source, target="portable", verify=False, **options)
    model = ir.to_proto(result.model)
    run = openvino_run(model.SerializeToString())
    for batch, length, padding in SIZES:
        reference, candidate = Generator(source, original, batch), Generator(model, run, batch)
        gap = largest_gap(reference, candidate, prompt(batch, length, padding))
        assert gap < TOLERANCE, (batch, length, padding)


def test_the_fused_target_does_not_load() -> None:
    """The day it does, the portable target has lost its reason for OpenVINO."""
    result = mla_opt.optimize(export_file(ExportSpec("deepseek_v3")), verify=False)
    with pytest.raises(RuntimeError, match="LatentAttention"):
        openvino_run(ir.to_proto(result.model).SerializeToString())
