"""Export a model with latent attention, optimize it in memory, save it, and generate with it.

    python examples/optimize_in_export_pipeline.py [OUT.onnx]

Needs torch and transformers. The model is a tiny DeepSeek-V3 with random weights; any other that
transformers exports goes the same way.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache

import mla_opt

LAYERS, LATENT, ROPE = 2, 64, 16
PAST = [f"past.{layer}.{part}" for layer in range(LAYERS) for part in ("c_kv", "k_pe")]


def tiny_model() -> DeepseekV3ForCausalLM:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        num_hidden_layers=LAYERS,
        hidden_size=96,
        intermediate_size=128,
        vocab_size=128,
        num_attention_heads=4,
        num_key_value_heads=4,
        qk_nope_head_dim=32,
        qk_rope_head_dim=ROPE,
        v_head_dim=32,
        kv_lora_rank=LATENT,
        q_lora_rank=48,
        first_k_dense_replace=LAYERS,
        initializer_range=0.2,
    )
    return DeepseekV3ForCausalLM(config).eval()


class WithFlatCache(torch.nn.Module):
    """The model with its cache as plain tensors: what a runtime feeds and gets."""

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, position_ids, *past):
        cache = DynamicCache(config=self.model.config)
        for layer, latent, rope in zip(cache.layers, past[::2], past[1::2], strict=True):
            layer.keys, layer.values, layer.is_initialized = latent, rope, True
            layer.dtype, layer.device = latent.dtype, latent.device
        outputs = self.model(input_ids, position_ids=position_ids, past_key_values=cache)
        halves = [half for layer in cache.layers for half in (layer.keys, layer.values)]
        return outputs.logits, *halves


def export(model: torch.nn.Module) -> ir.Model:
    batch, query, past = 2, 5, 7
    ids = torch.zeros(batch, query, dtype=torch.long)
    positions = torch.arange(past, past + query).expand(batch, query).contiguous()
    halves = [torch.zeros(batch, 1, past, width) for _ in range(LAYERS) for width in (LATENT, ROPE)]
    auto = torch.export.Dim.AUTO
    tokens, rows = {0: auto, 1: auto}, {0: auto, 2: auto}
    with torch.no_grad():
        program = torch.onnx.export(
            WithFlatCache(model),
            (ids, positions, *halves),
            dynamo=True,
            opset_version=18,
            input_names=["input_ids", "position_ids", *PAST],
            output_names=["logits", *(name.replace("past", "present") for name in PAST)],
            dynamic_shapes={
                "input_ids": tokens,
                "position_ids": tokens,
                "past": tuple(rows for _ in halves),
            },
            verbose=False,
        )
    return program.model


def generate(path: Path, prompt: list[int], steps: int) -> list[int]:
    """Greedy tokens; the cache that comes out of one call goes into the next."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    widths = [LATENT, ROPE] * LAYERS
    cache = {name: np.zeros((1, 1, 0, width), np.float32) for name, width in zip(PAST, widths)}
    tokens, fed, seen = list(prompt), list(prompt), 0
    for _ in range(steps):
        ids = np.array([fed])
        feeds = {"input_ids": ids, "position_ids": seen + np.arange(len(fed))[None], **cache}
        logits, *present = session.run(None, feeds)
        cache = dict(zip(PAST, present, strict=True))
        seen += len(fed)
        fed = [int(logits[0, -1].argmax())]
        tokens += fed
    return tokens


def main(output: Path) -> None:
    exported = export(tiny_model())
    original = output.with_name(output.stem + ".original.onnx")
    ir.save(exported, original)

    # In memory: the graph that torch made goes in, and is not changed.
    result = mla_opt.optimize(exported)
    ir.save(result.model, output)

    for site in result.report.sites:
        error = f"certified to {site.certificate_error:.0e}"
        print(f"{site.name}: {site.geometry}, {site.form}, {error}")
    prompt = [3, 1, 4, 1, 5]
    before, after = (generate(path, prompt, 12) for path in (original, output))
    print("original :", before)
    print("optimized:", after)
    if before != after:
        raise SystemExit("the two do not generate the same tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("deepseek.mla.onnx"))
