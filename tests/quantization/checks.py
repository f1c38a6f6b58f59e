"""That optimizing a quantized model changes nothing but roundings of activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

import mla_opt
from mla_opt.verification.onnx.twins import ACCURACY_OF_FUSED
from tests.graphs.latent_block import Block, feeds

TOLERANCE = 2e-4


def check_equal(model: onnx.ModelProto, block: Block) -> None:
    """Optimize without verification, and compare both in ONNX Runtime."""
    result = mla_opt.optimize(model, verify=False)
    (site,) = result.report.sites
    assert site.certificate_error is not None
    assert site.certificate_error < 2e-5
    for sizes in ((2, 3, 5), (1, 1, 4), (2, 4, 0)):
        fed = feeds(block, *sizes)
        before, after = (run(each, fed) for each in (model, ir.to_proto(result.model)))
        for name, reference in before.items():
            error = np.abs(reference - after[name]).max() / reference.std()
            assert error < TOLERANCE, (name, sizes, error)


def run(model: onnx.ModelProto, fed: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs by name, with float activations wherever ONNX Runtime fuses stored weights."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(*ACCURACY_OF_FUSED)
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, fed)))


def check_verified(
    model: onnx.ModelProto, *, controlled: bool = True, **options: Any
) -> mla_opt.OptimizationReport:
    """Optimize with verification, whose floor is what it is for all float32 models.

    ``controlled``: whether there is anything to break.
    """
    report = mla_opt.optimize(model, **options).report
    assert len(report.sites) == 1
    assert report.verification is not None
    assert report.verification["passed"]
    assert report.verification["tolerance"]["floor"] == TOLERANCE
    assert all(output["relative"] < TOLERANCE for output in report.verification["outputs"])
    controls = report.verification["controls"]
    assert any(each["applicable"] for each in controls) == controlled
    assert all(each["detected"] for each in controls if each["applicable"])
    return report
