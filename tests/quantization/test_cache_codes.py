"""Rows of 8 bits in a whole model at the head widths of DeepSeek-V2-Lite.

Embeddings, a layer with norms, attention and MLP, and logits; hidden size and MLP are small.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mla_opt
from mla_opt.operator.quantized_rows import row_bytes
from mla_opt.runtimes.onnxruntime import LatentCache, generate, session
from tests.benchmarks import handmade
from tests.benchmarks.dims import Dims

DIMS = Dims(layers=1, hidden_size=64, mlp=48, vocab=97)
#: Most that codes may take a logit away, relative to the spread of all.
MOST = {"int8": 0.05, "fp8": 0.2}
#: What the kernel's products of bfloat16 may, and the order of sums of float32.
ROUNDING = 2e-2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("codes") / "model.onnx"
    handmade.build(DIMS, "expanded", path)
    return path


@functools.cache
def optimized(model: Path, layout: str, cache_type: Any) -> Any:
    """Verified where that is quick: a packed cache is by prompts that are long enough to expand."""
    verify = cache_type != "keep" and layout != "packed"
    return mla_opt.optimize(model, cache=layout, cache_type=cache_type, verify=verify)


def said(opened: Any) -> list[np.ndarray]:
    """Logits behind a prompt, a chunk and two steps of sequences of different lengths."""
    tokens = np.random.default_rng(1).integers(0, DIMS.vocab, (3, 40))
    cache, made = LatentCache.create(opened, batch=3, capacity=64), []
    for lengths in ((24, 9, 17), (7, 3, 5), (1, 1, 1), (1, 1, 1)):
        starts = cache.lengths
        rows = [row[at : at + count].tolist() for row, at, count in zip(tokens, starts, lengths)]
        made.append(cache.append(rows).copy())
    return made


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    spread = np.concatenate([each.ravel() for each in other]).std()
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other)) / spread


@pytest.mark.parametrize("layout", ["packed", "static:64"])
@pytest.mark.parametrize("cache_type", MOST)
def test_a_whole_model_at_real_head_widths(model, cache_type, layout):
    result = optimized(model, layout, cache_type)
    assert layout == "packed" or result.report.verification["passed"]
    for site in result.report.sites:
        assert site.cache_bytes_per_token_after == row_bytes(512, 64) == 656
    exact = said(session(optimized(model, layout, "keep").model))
    by_kernel, by_body = (
        said(session(result.model, kernel=kernel, intra_op_threads=1)) for kernel in (True, False)
    )
    for made in (by_kernel, by_body):
        assert 1e-4 < apart(made, exact) < MOST[cache_type]
    assert apart(by_kernel, by_body) < ROUNDING


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("cache_type", MOST)
def test_padded_sequences_say_what_each_says_alone(model, cache_type, kernel):
    opened = session(optimized(model, "packed", cache_type).model, kernel=kernel)
    tokens = np.random.default_rng(2).integers(0, DIMS.vocab, (2, 12)).tolist()
    prompts = [tokens[0], tokens[1][:5]]
    together = generate(opened, prompts, max_new_tokens=3)
    alone = [generate(opened, prompt, max_new_tokens=3).tokens[0] for prompt in prompts]
    assert [row.tolist() for row in together.tokens] == [row.tolist() for row in alone]
