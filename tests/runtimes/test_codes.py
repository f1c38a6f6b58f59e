"""Caches of codes in the runtime: grown, written in place, kept in a file, and used to generate."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import mla_opt
from mla_opt.kernels import use_cpu_tier
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import LatentCache, generate, session
from tests.end_to_end.driving import prompt

#: Most that codes may take any logit away, of a spread of about 2.
MOST = {"int8": 0.3, "fp8": 1.2}


@pytest.fixture(autouse=True)
def _exact_products():
    """Tiers that multiply in bfloat16 add up a prompt and a step in different orders."""
    use_cpu_tier("portable")
    yield
    use_cpu_tier(None)


@functools.cache
def opened(cache: str, cache_type: Any = "keep") -> Any:
    model = mla_opt.optimize(demo_model(), cache=cache, cache_type=cache_type, verify=False).model
    return session(model)


@pytest.mark.parametrize("layout", ["packed", "static:64"])
@pytest.mark.parametrize("cache_type", MOST)
def test_a_cache_of_codes(cache_type, layout, tmp_path):
    codes, exact = opened(layout, cache_type), opened(layout)
    tokens = prompt(2, 9, 0)["input_ids"] % 97
    whole, wide = (LatentCache.create(each, batch=2) for each in (codes, exact))
    assert whole.nbytes < wide.nbytes
    logits = whole.append(tokens).copy()
    assert 0 < np.abs(logits - wide.append(tokens)).max() < MOST[cache_type]
    # token by token: every step sees what the prompt saw
    steps = LatentCache.create(codes, batch=2)
    for place in range(9):
        last = steps.append(tokens[:, place : place + 1]).copy()
    np.testing.assert_allclose(last, logits, atol=2e-4)
    saved = tmp_path / "cache.npz"
    steps.save(saved)
    again = LatentCache.load(saved, codes)
    again.select([1, 0])
    following = again.append([[2], [1]]).copy()[[1, 0]]
    np.testing.assert_allclose(following, whole.append([[1], [2]]), atol=2e-4)
    said = generate(codes, tokens.tolist(), max_new_tokens=4)
    assert [len(each) for each in said.tokens] == [4, 4]
