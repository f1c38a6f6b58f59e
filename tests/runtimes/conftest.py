"""The model that comes along, optimized in every layout of its cache, and the truth about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import mla_opt
from mla_opt.models import demo_model
from mla_opt.runtimes.onnxruntime import session
from tests.end_to_end.driving import Generator, onnxruntime_run

LAYOUTS = ("keep", "packed", "even", "static:64", "static")
VOCABULARY = 112
#: Logits have a spread of about 1; measured: below 2e-6.
TOLERANCE = 5e-5

Logits = Callable[[list[int]], np.ndarray]


@pytest.fixture(scope="session")
def original() -> Logits:
    """Logits ``[S, V]`` of one whole sequence, by the original model in one call without a past."""
    model = onnx.load(demo_model())
    run = onnxruntime_run(demo_model().read_bytes())

    def logits(tokens: list[int]) -> np.ndarray:
        ids = np.asarray([tokens], np.int64)
        positions = np.arange(len(tokens))[None]
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
        return np.asarray(Generator(model, run, 1)(feeds)[0])

    return logits


@pytest.fixture(scope="session")
def greedy(original: Logits) -> Callable[[list[int], int], list[int]]:
    """Greedy continuation of one sequence, the whole of it anew for each token."""

    def continuation(tokens: list[int], count: int) -> list[int]:
        text = list(tokens)
        for _ in range(count):
            text.append(int(original(text)[-1].argmax()))
        return text[len(tokens) :]

    return continuation


@pytest.fixture(scope="session")
def models() -> dict[str, ir.Model]:
    return {
        layout: mla_opt.optimize(demo_model(), cache=layout, verify=False).model
        for layout in LAYOUTS
    }


@pytest.fixture(params=LAYOUTS, scope="session")
def opened(request: pytest.FixtureRequest, models: dict[str, Any]) -> ort.InferenceSession:
    """A session of each layout."""
    return session(models[request.param], intra_op_threads=2)


@pytest.fixture(scope="session")
def kept(models: dict[str, Any]) -> ort.InferenceSession:
    """A session of the layout that most users have."""
    return session(models["keep"])
