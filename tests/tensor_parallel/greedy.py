"""Greedy tokens of one prompt, by whatever runs a model of `tests.benchmarks.handmade`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from tests.benchmarks.dims import Dims
from tests.tensor_parallel.ranks import DIMS

Feeds = Mapping[str, np.ndarray[Any, Any]]
Run = Callable[[Feeds], dict[str, np.ndarray[Any, Any]]]
PROMPT = [77, 5]


def session_run(path: Path) -> Run:
    opened = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in opened.get_outputs()]
    return lambda feeds: dict(zip(names, opened.run(None, dict(feeds))))


def greedy(run: Run, prompt: list[int], count: int, dims: Dims = DIMS) -> list[int]:
    widths = {"keys": dims.kv_lora_rank, "values": dims.qk_rope_head_dim}
    caches = {
        f"{layer}.{half}": np.zeros((1, 1, 0, width), np.float32)
        for layer in range(dims.layers)
        for half, width in widths.items()
    }
    new, said, past = list(prompt), [], 0
    for _ in range(count):
        total = past + len(new)
        feeds = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(past, total)[None],
            **{f"past.{name}": rows for name, rows in caches.items()},
        }
        outputs = run(feeds)
        caches = {name: outputs[f"present.{name}"] for name in caches}
        new, past = [int(outputs["logits"][0, -1].argmax())], total
        said += new
    return said
