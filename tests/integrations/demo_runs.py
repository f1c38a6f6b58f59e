"""The model of `mla-opt demo`, and what became of it, run by ONNX Runtime on the same inputs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import mla_opt

FUSED = {"MultiHeadLatentAttention": 2}


def fused(model: onnx.ModelProto) -> dict[str, int]:
    count = Counter(node.op_type for node in model.graph.node)
    return {name: count[name] for name in FUSED}


def outputs(model: onnx.ModelProto, *, kernel: bool) -> list[np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if kernel:
        options.register_custom_ops_library(str(mla_opt.kernel_library()))
    session = ort.InferenceSession(model.SerializeToString(), options)
    random = np.random.default_rng(0)
    batch, new, past = 2, 3, 5
    feeds: dict[str, Any] = {
        "input_ids": random.integers(0, 50, (batch, new)),
        "attention_mask": np.ones((batch, past + new), np.int64),
        "position_ids": np.arange(past, past + new)[None].repeat(batch, 0),
    }
    for each in session.get_inputs():
        if each.name not in feeds:
            rows = (batch, 1, past, each.shape[3])
            feeds[each.name] = random.standard_normal(rows).astype(np.float32)
    return session.run(None, feeds)


def check_same(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    for kernel in (False, True):
        pairs = zip(outputs(one, kernel=kernel), outputs(other, kernel=False), strict=True)
        for got, wanted in pairs:
            assert np.abs(got - wanted).max() < 1e-4 * wanted.std()
