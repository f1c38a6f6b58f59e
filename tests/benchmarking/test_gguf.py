"""GGUF files of DeepSeek's architecture, read back: for llama.cpp, and for ik_llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")
safetensors = pytest.importorskip("safetensors.torch")

HEADS, NOPE, ROPE, VALUE, RANK, HIDDEN = 3, 32, 16, 64, 96, 64
CONFIG: dict[str, Any] = {
    "num_hidden_layers": 1,
    "vocab_size": 32,
    "max_position_embeddings": 128,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_attention_heads": HEADS,
    "rms_norm_eps": 1e-6,
    "q_lora_rank": None,
    "kv_lora_rank": RANK,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "v_head_dim": VALUE,
}
SHAPES = {
    "model.embed_tokens.weight": (32, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "model.layers.0.self_attn.q_proj.weight": (HEADS * (NOPE + ROPE), HIDDEN),
    "model.layers.0.self_attn.kv_b_proj.weight": (HEADS * (NOPE + VALUE), RANK),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("gguf")
    (made / "config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    safetensors.save_file(weights, made / "model.safetensors")
    return made


def written(folder: Path, runtime: str, precision: str, tmp_path: Path) -> Any:
    from mla_opt.benchmarking.peers.gguf_convert import convert

    convert(folder, runtime, precision, tmp_path / "model.gguf")
    return gguf.GGUFReader(tmp_path / "model.gguf")


def numbers(reader: Any, name: str) -> np.ndarray:
    (tensor,) = (each for each in reader.tensors if each.name == name)
    made: np.ndarray = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return made


@pytest.mark.parametrize(("precision", "error"), [("f32", 0.0), ("f16", 2e-3), ("q4_0", 0.5)])
def test_keys_and_values_are_whole_for_one_and_apart_for_the_other(
    folder: Path, precision: str, error: float, tmp_path: Path
) -> None:
    weights = safetensors.load_file(folder / "model.safetensors")
    kv_b = weights["model.layers.0.self_attn.kv_b_proj.weight"].numpy()
    whole = written(folder, "ik_llama.cpp", precision, tmp_path)
    assert whole.get_field("deepseek2.attention.head_count_kv").contents() == HEADS
    assert whole.get_field("deepseek2.attention.key_length").contents() == NOPE + ROPE
    assert np.abs(numbers(whole, "blk.0.attn_kv_b.weight") - kv_b).max() <= error
    apart = written(folder, "llama.cpp", precision, tmp_path)
    assert apart.get_field("deepseek2.attention.head_count_kv").contents() == 1
    assert apart.get_field("deepseek2.attention.key_length").contents() == RANK + ROPE
    by_head = kv_b.reshape(HEADS, NOPE + VALUE, RANK)
    w_uk, w_uv = by_head[:, :NOPE].transpose(0, 2, 1), by_head[:, NOPE:]
    assert np.abs(numbers(apart, "blk.0.attn_k_b.weight") - w_uk).max() <= error
    assert np.abs(numbers(apart, "blk.0.attn_v_b.weight") - w_uv).max() <= error


def test_blocks_of_4_bits_go_as_they_are_but_for_transposed_ones() -> None:
    from tests.benchmarks.whole_gguf import apart, q4_0

    random, kind = np.random.default_rng(0), gguf.GGMLQuantizationType
    rows = HEADS * (NOPE + VALUE)
    stored = random.integers(0, 256, (rows, RANK // 32, 16)).astype(np.uint8)
    scales = random.uniform(0.5, 1.5, (rows, RANK // 32)).astype(np.float16)
    codes = np.stack([stored & 15, stored >> 4], axis=-1).reshape(rows, -1, 32).astype(int) - 8
    exact = (codes * scales[..., None].astype(float)).reshape(HEADS, NOPE + VALUE, RANK)
    name = "model.layers.0.self_attn.kv_b_proj.weight"
    (key, keys, of_keys), (value, values, of_values) = apart(
        name, q4_0(stored, scales), kind.Q4_0, CONFIG
    )
    assert [key, value] == [name.replace("kv_b", "k_b"), name.replace("kv_b", "v_b")]
    assert (of_keys, of_values) == (kind.Q8_0, kind.Q4_0)
    np.testing.assert_array_equal(gguf.quants.dequantize(values, kind.Q4_0), exact[:, NOPE:])
    made = gguf.quants.dequantize(keys, kind.Q8_0)
    assert np.abs(made - exact[:, :NOPE].transpose(0, 2, 1)).max() < 12 / 127


def test_every_norm_of_a_whole_model_has_a_place() -> None:
    from tests.benchmarks.whole_gguf import norms

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, 2)
    config = CONFIG | {"num_hidden_layers": 2, "q_lora_rank": 48}
    written = {names.get_name(name, (".weight",)): array.shape for name, array, _ in norms(config)}
    of_layer = {"attn_norm": 64, "ffn_norm": 64, "attn_q_a_norm": 48, "attn_kv_a_norm": 96}
    wanted = {f"blk.{n}.{k}.weight": (size,) for n in (0, 1) for k, size in of_layer.items()}
    assert written == wanted | {"output_norm.weight": (64,)}
