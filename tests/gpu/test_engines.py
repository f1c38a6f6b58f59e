"""Engines from export to generated tokens, by TensorRT itself, where there are one and a GPU."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import mla_opt
from mla_opt.engines.export import ExportOptions, export
from mla_opt.engines.profiles import Range, Ranges
from mla_opt.kernels.building.cuda_build import build_tensorrt
from mla_opt.runtimes.onnxruntime import LatentCache, session
from mla_opt.runtimes.tensorrt import EngineCache, generate, load
from tests.engines.rtx import headers, needs_headers
from tests.engines.token_model import VOCABULARY, token_model
from tests.gpu.driver import Device

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("tensorrt", "cuda")),
    reason="needs tensorrt and cuda-bindings (the extra tensorrt)",
)
ROWS = 128
PROMPTS = [[5, 3, 8, 1, 2], [7, 7], list(range(40))]
RANGES = Ranges(ROWS, Range(1, 3, 4), Range(1, 32, 64), Range(1, 1, 8), Range(1, 64, ROWS))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return token_model(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    found = headers()
    assert found is not None
    folder = tmp_path_factory.mktemp("plugin")
    return build_tensorrt((str(Device().architecture),), folder, found).library


@pytest.fixture(scope="module")
def expected(source):
    """Logits of the prompts and of four steps, by ONNX Runtime in float32."""
    model = mla_opt.optimize(source, cache=f"static:{ROWS}", verify=False).model
    return logits(LatentCache.create(session(model), batch=len(PROMPTS)))


def logits(cache):
    made = [cache.append(PROMPTS).astype(np.float32)]
    for step in range(4):
        made.append(cache.append([[step], [step + 1], [step + 2]]).astype(np.float32))
    return np.stack(made)


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-2), ("bfloat16", 6e-2)])
def test_standard_operators(source, expected, tmp_path, precision, tolerance):
    options = ExportOptions(RANGES, precision, use_plugin=False, verify=False)
    check(export_to(source, tmp_path, options), expected, tolerance)


@needs_headers
@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-2), ("bfloat16", 6e-2)])
@pytest.mark.parametrize("embed", [False, True], ids=["beside", "carried"])
def test_the_plugin(source, plugin, expected, tmp_path, precision, tolerance, embed):
    options = ExportOptions(RANGES, precision, plugin=plugin, embed_plugin=embed, verify=False)
    check(export_to(source, tmp_path, options), expected, tolerance)


def export_to(source, folder, options):
    made = export(source, folder / "engines", options)
    assert all(phase.cache_in_place is not False for phase in made.phases)
    return load(folder / "engines", allow_host_code=options.embed_plugin)


def check(engines, expected, tolerance):
    seen = logits(EngineCache(engines, len(PROMPTS)))
    spread = np.abs(expected).max()
    np.testing.assert_allclose(seen, expected, rtol=0, atol=tolerance * spread)
    result = generate(engines, PROMPTS, max_new_tokens=8)
    assert all(row.size == 8 and row.max() < VOCABULARY for row in result.tokens)
