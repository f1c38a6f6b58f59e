"""Generation with real exports: every shape of cache that they have, and 16-bit numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

import mla_opt
from mla_opt.errors import InputError
from mla_opt.runtimes.onnxruntime import LatentCache, generate, session
from tests.end_to_end.conftest import export_file
from tests.end_to_end.driving import Generator, following, onnxruntime_run, prompt
from tests.exports.cache import exported
from tests.exports.families import FAMILIES
from tests.exports.spec import ExportSpec

SPECS = [
    ExportSpec("deepseek_v2_noqlora"),
    ExportSpec("deepseek_v3", dtype="float16"),
    ExportSpec("minicpm3", opset=20),
    ExportSpec("deepseek_v3", exporter="dynamo457"),
]


def greedy(path, tokens: np.ndarray, steps: int) -> np.ndarray:
    """By the original model and the tests' own loop."""
    model = onnx.load(path)
    run = Generator(model, onnxruntime_run(path.read_bytes()), tokens.shape[0])
    feeds = {**prompt(*tokens.shape, padding=0), "input_ids": tokens}
    said = []
    for _ in range(steps):
        feeds = following(feeds, run(feeds))
        said.append(feeds["input_ids"][:, 0])
    return np.stack(said, axis=1)


@pytest.mark.parametrize("cache", ["keep", "static"])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.id)
def test_it_says_what_the_original_says(spec, cache):
    path = export_file(spec)
    tokens = prompt(2, 7, 0)["input_ids"]
    optimized = mla_opt.optimize(path, cache=cache, verify=False).model
    result = generate(session(optimized), tokens, max_new_tokens=6)
    expected = greedy(path, tokens, 6)
    if spec.dtype == "float16":
        # Two equal logits may fall either way in 11 bits: the first tokens are none of these.
        assert np.stack(result.tokens)[:, :3].tolist() == expected[:, :3].tolist()
    else:
        assert np.stack(result.tokens).tolist() == expected.tolist()


@pytest.mark.parametrize("cache_type", ["float16", "bfloat16"])
def test_caches_of_16_bits(cache_type, tmp_path):
    path = exported(ExportSpec("deepseek_v2_noqlora"))
    narrow, wide = (
        session(mla_opt.optimize(path, cache_type=kind, verify=False).model)
        for kind in (cache_type, "keep")
    )
    tokens = prompt(2, 7, 0)["input_ids"]
    caches = [LatentCache.create(opened, batch=2) for opened in (narrow, wide)]
    assert 2 * caches[0].nbytes == caches[1].nbytes
    rounded, exact = (cache.append(tokens) for cache in caches)
    assert 0 < np.abs(rounded - exact).max() < 0.2
    saved = tmp_path / "cache.npz"
    caches[0].save(saved)
    again = LatentCache.load(saved, narrow)
    np.testing.assert_array_equal(again.append([[1], [2]]), caches[0].append([[1], [2]]))


@pytest.mark.sweep
def test_recurrent_states_are_kept_beside_the_caches():
    """Kimi Linear: what its linear layers have read they cannot forget."""
    path = exported(ExportSpec("kimi_linear", exporter="hf", opset=20, component="decode"))
    original, opened = session(path), session(mla_opt.optimize(path, verify=False).model)
    tokens, other = [[5], [7]], [[7], [5]]
    said = generate(opened, tokens, max_new_tokens=6)
    expected = generate(original, tokens, max_new_tokens=6)
    assert np.stack(said.tokens).tolist() == np.stack(expected.tokens).tolist()
    # Beams take their recurrent states along.
    caches = [LatentCache.create(opened, batch=2) for _ in range(2)]
    for cache, first in zip(caches, (tokens, other)):
        cache.append(first)
    caches[1].select([1, 0])
    one, two = (cache.append([[1], [2]]).copy() for cache in caches)
    np.testing.assert_allclose(one, two, atol=1e-5)
    with pytest.raises(InputError, match="forget nothing"):
        said.cache.truncate(2)
    with pytest.raises(InputError, match="no mask and positions"):
        generate(opened, [[1, 2], [3]], max_new_tokens=1)


@pytest.fixture(scope="module")
def one_token_step(tmp_path_factory) -> tuple[Any, Path]:
    """Kimi Linear, and its step of one token as transformers exports it by default.

    The convolution's state, four tokens wide, has an open width there.
    """
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
    from transformers.exporters.utils import decompose_for_generation

    model = FAMILIES["kimi_linear"].build("sdpa")
    ids = torch.arange(10).reshape(2, 5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    config = OnnxConfig(dynamic=True, opset_version=18)
    step = decompose_for_generation(model, inputs)["decode"]
    exported_step, _ = OnnxExporter().export_program(*step, config=config)
    path = tmp_path_factory.mktemp("step") / "step.onnx"
    ir.save(exported_step, path)
    return model, path


def test_a_state_of_open_width(one_token_step):
    model, path = one_token_step
    conv = next(value for value in onnx.load(path).graph.input if "conv_states" in value.name)
    assert conv.type.tensor_type.shape.dim[2].dim_param
    result = mla_opt.optimize(path)  # verified
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    said = generate(session(result.model), tokens.numpy(), max_new_tokens=6)
    asked = {"attention_mask": torch.ones_like(tokens), "pad_token_id": 0, "do_sample": False}
    expected = model.generate(tokens, max_new_tokens=6, **asked)
    assert np.stack(said.tokens).tolist() == expected[:, 3:].tolist()


def test_a_model_without_a_cache_is_refused():
    path = exported(ExportSpec("deepseek_v3", opset=23, attention="eager", cache=False))
    with pytest.raises(InputError, match="keeps no cache"):
        generate(session(path), [1, 2], max_new_tokens=1)


def test_a_session_of_a_stranger_is_refused():
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "tiny",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2])],
    )
    opset = onnx.helper.make_opsetid("", 18)
    proto = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    own = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for opened in (session(proto), own):
        with pytest.raises(InputError, match="no input for token ids"):
            generate(opened, [1], max_new_tokens=1)
