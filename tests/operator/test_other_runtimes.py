"""The inlined body outside ONNX Runtime, whose corner cases differ."""

from __future__ import annotations

import numpy as np
import onnx.inliner
import pytest

from mla_opt.operator import latent_attention
from mla_opt.operator.onnx.body_style import PORTABLE, BodyStyle
from tests.operator.cases import (
    RANK,
    REDUCED_SIGNATURES,
    SCALE,
    difference,
    model,
    name,
    operands,
)

openvino = pytest.importorskip("openvino")


def run_openvino(proto, feeds, folder):
    path = folder / "model.onnx"
    onnx.save(proto, path)
    # The default on some machines is a 16-bit inference precision.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    results = compiled(feeds)
    return [results[index] for index in range(len(compiled.outputs))]


@pytest.mark.parametrize("style", [BodyStyle(), PORTABLE])
@pytest.mark.parametrize("signature", REDUCED_SIGNATURES, ids=name)
def test_openvino_matches_the_reference(signature, style, tmp_path):
    feeds = operands(signature)
    proto = onnx.inliner.inline_local_functions(model(signature, feeds, style=style, opset=24))
    output, *caches = run_openvino(proto, feeds, tmp_path)
    expected = latent_attention(**feeds, scale=SCALE, kv_lora_rank=RANK, causal=signature.causal)
    assert difference(output, expected.output) <= 2e-6
    assert len(caches) == len(signature.outputs) - 1
    for actual, cache in zip(caches, expected[1:]):
        np.testing.assert_array_equal(actual, cache)
