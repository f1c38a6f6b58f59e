"""An export of optimum, optimized with its folder, and run by what its config says.

optimum makes the empty cache by the config and hands outputs back as inputs in their order; this
does the same, with nothing known of the model.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import mla_opt
from tests.exports.cache import kept_export
from tests.folders import layouts

BASE = {"num_key_value_heads": 3, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8, "v_head_dim": 20}


def opened(folder: Path, kernel: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if kernel:
        options.register_custom_ops_library(str(mla_opt.kernel_library()))
    return onnxruntime.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def empty_cache(config: dict[str, Any], names: list[str]) -> dict[str, np.ndarray[Any, Any]]:
    key = config["qk_nope_head_dim"] + config["qk_rope_head_dim"]
    widths = {name: key if ".key" in name else config["v_head_dim"] for name in names}
    heads = config["num_key_value_heads"]
    return {name: np.zeros((1, heads, 0, width), np.float32) for name, width in widths.items()}


def generated(folder: Path, prompt: list[int], count: int, *, kernel: bool = False) -> list[int]:
    """Greedy tokens, one call for the prompt and one for each of them."""
    session = opened(folder, kernel)
    inputs = [each.name for each in session.get_inputs()]
    outputs = [each.name for each in session.get_outputs()]
    caches = [name for name in inputs if ".key" in name or ".value" in name]
    presents = [name for name in outputs if ".key" in name or ".value" in name]
    config = json.loads((folder / "config.json").read_text())
    past = empty_cache(config, caches)
    tokens, new = list(prompt), list(prompt)
    for _ in range(count):
        feeds = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, len(tokens)), np.int64),
            "position_ids": np.arange(len(tokens) - len(new), len(tokens))[None],
        }
        fed = {name: value for name, value in feeds.items() if name in inputs}
        results = dict(zip(outputs, session.run(None, {**fed, **past})))
        new = [int(results["logits"][0, -1].argmax())]
        tokens += new
        past = {name: results[present] for name, present in zip(caches, presents)}
    return tokens[len(prompt) :]


@pytest.fixture(scope="module", params=["keep", "even"])
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("optimum")
    source, target = root / "in", root / "out"
    source.mkdir()
    shutil.copyfile(kept_export("deepseek_v3-optimum457-opset18-sdpa-cache"), source / "model.onnx")
    layouts.write(source, "config.json", {"model_type": "deepseek_v3", **BASE})
    result = mla_opt.optimize_folder(source, target, cache=request.param, verify=False)
    assert result.kind == "optimum"
    return source, target


def test_the_config_describes_the_new_cache(folders: tuple[Path, Path]) -> None:
    _, target = folders
    config = json.loads((target / "config.json").read_text())
    session = opened(target, kernel=False)
    shapes = {each.name: each.shape for each in session.get_inputs() if "past" in each.name}
    assert shapes
    for name, made in empty_cache(config, list(shapes)).items():
        assert (shapes[name][1], shapes[name][3]) == (made.shape[1], made.shape[3])
    assert (config["num_key_value_heads"], config["v_head_dim"]) in ((1, 8), (1, 28))


@pytest.mark.parametrize("kernel", [False, True], ids=["body", "kernel"])
def test_the_same_tokens(folders: tuple[Path, Path], kernel: bool) -> None:
    source, target = folders
    prompt = [3, 14, 15, 92, 65]
    assert generated(target, prompt, 12, kernel=kernel) == generated(source, prompt, 12)
