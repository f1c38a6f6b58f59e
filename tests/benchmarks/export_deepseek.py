"""Export one DeepSeek-V3 style model with a flat KV cache; runs under the transformers it is
started with.

    python tests/benchmarks/export_deepseek.py DIMS-AS-JSON OPSET OUT.onnx

The same file serves transformers 5.23 (latent cache) and 4.57 (expanded cache), so it imports
neither the package under test nor its neighbours. Weights depend on their name only: both versions
export the same model.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.cache_utils import DynamicCache

WEIGHT_STD, NORM_STD = 0.03, 0.1


def config(dims: dict[str, Any]) -> Any:
    """The configuration of `dims`: no expert layers, no YaRN, interleaved rotary dimensions."""
    make: Any = transformers.DeepseekV3Config
    return make(
        num_hidden_layers=dims["layers"],
        hidden_size=dims["hidden_size"],
        num_attention_heads=dims["num_heads"],
        num_key_value_heads=dims["num_heads"],
        qk_nope_head_dim=dims["qk_nope_head_dim"],
        qk_rope_head_dim=dims["qk_rope_head_dim"],
        v_head_dim=dims["v_head_dim"],
        kv_lora_rank=dims["kv_lora_rank"],
        q_lora_rank=dims["q_lora_rank"],
        intermediate_size=dims["mlp"],
        vocab_size=dims["vocab"],
        first_k_dense_replace=dims["layers"],
        max_position_embeddings=65536,
        rope_interleave=True,
        attn_implementation="sdpa",
    )


def randomize(model: torch.nn.Module) -> None:
    """Give every parameter noise that depends on its name."""
    for name, parameter in model.named_parameters():
        noise = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        if "norm" in name:
            parameter.data.normal_(1.0, NORM_STD, generator=noise)
        else:
            parameter.data.normal_(0.0, WEIGHT_STD, generator=noise)


class FlatCache(torch.nn.Module):
    """The model with its cache as plain inputs and outputs; logits of the last position only."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: Any,
    ) -> tuple[torch.Tensor, ...]:
        """Return the logits, then the present keys and values layer by layer."""
        cache = DynamicCache([(keys, values) for keys, values in past])
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        present = output.past_key_values.layers
        return output.logits, *(
            tensor for layer in present for tensor in (layer.keys, layer.values)
        )


def cache_shapes(dims: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heads and width of what this version of transformers caches as keys and as values."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return (1, dims["kv_lora_rank"]), (1, dims["qk_rope_head_dim"])
    heads = dims["num_heads"]
    return (heads, dims["qk_nope_head_dim"] + dims["qk_rope_head_dim"]), (heads, dims["v_head_dim"])


def example(dims: dict[str, Any], batch: int = 2, new: int = 3, past: int = 5) -> tuple[Any, ...]:
    """Arguments to trace with."""
    (key_heads, key_dim), (value_heads, value_dim) = cache_shapes(dims)
    cache = [
        (
            torch.randn(batch, key_heads, past, key_dim),
            torch.randn(batch, value_heads, past, value_dim),
        )
        for _ in range(dims["layers"])
    ]
    ids = torch.zeros(batch, new, dtype=torch.long)
    mask = torch.ones(batch, past + new, dtype=torch.long)
    positions = torch.arange(past, past + new).expand(batch, new).contiguous()
    return ids, mask, positions, cache


def dynamic_shapes(layers: int) -> dict[str, Any]:
    """Batch, query and past lengths are free."""
    batch, new, past = (torch.export.Dim(name) for name in ("batch", "query", "past"))
    layer = ({0: batch, 2: past}, {0: batch, 2: past})
    return {
        "input_ids": {0: batch, 1: new},
        "attention_mask": {0: batch, 1: torch.export.Dim.AUTO},
        "position_ids": {0: batch, 1: new},
        "past": [layer] * layers,
    }


def program(
    model: torch.nn.Module, dims: dict[str, Any], opset: int, **options: Any
) -> torch.onnx.ONNXProgram:
    """The model as torch.onnx exports it, with `options` of its exporter."""
    names = [f"{i}.{kind}" for i in range(dims["layers"]) for kind in ("keys", "values")]
    with torch.no_grad():
        exported: torch.onnx.ONNXProgram = torch.onnx.export(
            FlatCache(model),
            example(dims),
            dynamo=True,
            opset_version=opset,
            input_names=[
                "input_ids",
                "attention_mask",
                "position_ids",
                *(f"past.{n}" for n in names),
            ],
            output_names=["logits", *(f"present.{n}" for n in names)],
            dynamic_shapes=dynamic_shapes(dims["layers"]),
            **options,
        )
    return exported


def export(dims: dict[str, Any], opset: int, path: Path) -> None:
    """Write the model beside its external data."""
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(config(dims)).eval()
    randomize(model)
    program(model, dims, opset).save(str(path), external_data=True)


if __name__ == "__main__":
    export(json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
