"""Programs that know one head size generate the same tokens from rows in two halves.

The original, an export of optimum, is run by ONNX Runtime alone: its keys and values have two
widths, which onnxruntime-genai cannot open.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mla_opt
from tests.exports.cache import kept_export
from tests.folders import layouts
from tests.folders.test_optimum_runs import BASE, generated
from tests.runtimes_matrix.test_onnxruntime import install

pytestmark = pytest.mark.other_runtimes

HERE = Path(__file__).parent
GENAI, TRANSFORMERS = "onnxruntime-genai==0.18.0", "@huggingface/transformers@4.3.2"
PROMPT, COUNT = [3, 14, 15, 92, 65], 12
ARGUMENTS = [str(COUNT), *map(str, PROMPT)]
DECODER = {
    "session_options": {"provider_options": []},
    "filename": "model.onnx",
    "head_size": 32,
    "hidden_size": 84,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "num_hidden_layers": 2,
    "inputs": {
        "input_ids": "input_ids",
        "attention_mask": "attention_mask",
        "position_ids": "position_ids",
        "past_key_names": "past_key_values.%d.key",
        "past_value_names": "past_key_values.%d.value",
    },
    "outputs": {
        "logits": "logits",
        "present_key_names": "present.%d.key",
        "present_value_names": "present.%d.value",
    },
}
VOCABULARY = 97


def config(end: int) -> dict[str, Any]:
    """What onnxruntime-genai reads, with a last token that nobody generates."""
    return {
        "model": {
            "type": "llama",
            "bos_token_id": 1,
            "eos_token_id": end,
            "pad_token_id": 0,
            "context_length": 256,
            "vocab_size": VOCABULARY,
            "decoder": DECODER,
        },
        "search": {"do_sample": False, "num_beams": 1, "past_present_share_buffer": False},
    }


def original(folder: Path, name: str = "model.onnx") -> Path:
    """A folder with an export whose keys and values are of every head."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(kept_export("deepseek_v3-optimum457-opset18-sdpa-cache"), folder / name)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 3, "kv_lora_rank": 48, **BASE}
    layouts.write(folder, "config.json", {"model_type": "deepseek_v3", **sizes})
    return folder


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    return generated(original(tmp_path_factory.mktemp("original")), PROMPT, COUNT)


def said(command: list[str], **variables: str) -> list[int]:
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [int(word) for word in done.stdout.split()]


@pytest.mark.parametrize("kernel", [False, True], ids=["body", "kernel"])
def test_onnxruntime_genai(kernel: bool, wanted: list[int], tmp_path: Path) -> None:
    source, target = original(tmp_path / "in"), tmp_path / "out"
    end = next(token for token in range(2, VOCABULARY) if token not in wanted)
    layouts.write(source, "genai_config.json", config(end))
    mla_opt.optimize_folder(source, target, cache="even", verify=False)
    written = json.loads((target / "genai_config.json").read_text())
    decoder = written["model"]["decoder"]
    assert (decoder["head_size"], decoder["num_key_value_heads"]) == (28, 1)
    if kernel:
        library = shutil.copy(mla_opt.kernel_library(), target)
        decoder["session_options"]["custom_ops_library"] = Path(library).name
        layouts.write(target, "genai_config.json", written)
    install(tmp_path / "packages", GENAI)
    script = [sys.executable, str(HERE / "run_genai.py"), str(target), *ARGUMENTS]
    assert said(script, PYTHONPATH=str(tmp_path / "packages")) == wanted


@pytest.mark.parametrize("cache", ["keep", "even"])
def test_transformers_js(cache: str, wanted: list[int], tmp_path: Path) -> None:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    target = tmp_path / "out"
    options = {"cache": cache, "target": "portable", "verify": False}
    mla_opt.optimize_folder(original(tmp_path / "in", "onnx/model.onnx"), target, **options)
    (tmp_path / "package.json").write_text("{}")
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(["npm", "install", *quiet, TRANSFORMERS], cwd=tmp_path, check=True)
    script = ["node", str(HERE / "run_transformers.mjs"), str(tmp_path), str(target), *ARGUMENTS]
    assert said(script) == wanted
