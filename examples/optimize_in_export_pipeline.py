"""Export a mixture-of-experts model with latent attention, optimize it in memory, and generate.

    python examples/optimize_in_export_pipeline.py [OUT.onnx]

Needs torch and transformers 5. The model is a tiny DeepSeek-V3 with random weights; any other that
transformers exports goes the same way. The graph takes batches of prompts of different lengths,
padded on the left, and a cache of any length.
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
TOKENS = ["input_ids", "attention_mask", "position_ids"]
PAST = [f"past.{layer}.{part}" for layer in range(LAYERS) for part in ("c_kv", "k_pe")]
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]


def tiny_model(heads: int = 4) -> DeepseekV3ForCausalLM:
    """A dense layer, then one with experts."""
    torch.manual_seed(0)
    config = DeepseekV3Config(
        num_hidden_layers=LAYERS,
        first_k_dense_replace=1,
        hidden_size=96,
        intermediate_size=128,
        moe_intermediate_size=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        vocab_size=128,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        qk_nope_head_dim=32,
        qk_rope_head_dim=ROPE,
        v_head_dim=32,
        kv_lora_rank=LATENT,
        q_lora_rank=48,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = DeepseekV3ForCausalLM(config).eval()
    # torch.onnx.export has no translation for the default, a grouped matmul.
    model.set_experts_implementation("batched_mm")
    return model


class WithFlatCache(torch.nn.Module):
    """The model with its cache as plain tensors: what a runtime feeds and gets."""

    def __init__(self, model: DeepseekV3ForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, *past):
        cache = DynamicCache(zip(past[::2], past[1::2], strict=True), config=self.model.config)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
        )
        halves = [half for layer in cache.layers for half in (layer.keys, layer.values)]
        return outputs.logits, *halves


def arguments(batch: int, new: int, past: int, padding: int = 0) -> tuple[torch.Tensor, ...]:
    """Tokens on a made-up past; the first sequence begins with ``padding`` tokens of padding."""
    ids = torch.randint(0, 128, (batch, new))
    mask = torch.ones(batch, past + new, dtype=torch.long)
    mask[0, :padding] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, past:].contiguous()
    caches = [torch.randn(batch, 1, past, width) for _ in range(LAYERS) for width in (LATENT, ROPE)]
    return ids, mask, positions, *caches


def dynamic_shapes() -> dict:
    """Batch and every length may vary."""
    auto = torch.export.Dim.AUTO
    shapes: dict = {name: {0: auto, 1: auto} for name in TOKENS}
    return {**shapes, "past": tuple({0: auto, 2: auto} for _ in PAST)}


def export(model: torch.nn.Module) -> ir.Model:
    """An ONNX graph in memory."""
    with torch.no_grad():
        program = torch.onnx.export(
            WithFlatCache(model).eval(),
            # All sizes differ, so that no two of them are taken for one.
            arguments(batch=2, new=5, past=11, padding=2),
            dynamo=True,
            input_names=[*TOKENS, *PAST],
            output_names=["logits", *(name.replace("past", "present") for name in PAST)],
            dynamic_shapes=dynamic_shapes(),
            verbose=False,
        )
    return program.model


def padded(prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and mask of prompts of different lengths, padded on the left."""
    longest = max(map(len, prompts))
    ids = np.array([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def in_onnxruntime(path: Path):
    """What runs a file: arrays by name in, outputs in order out."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def generate(run, prompts: list[list[int]], steps: int) -> list[list[int]]:
    """Greedy tokens; the cache that comes out of one call goes into the next."""
    batch, widths = len(prompts), [LATENT, ROPE] * LAYERS
    cache = {name: np.zeros((batch, 1, 0, width), np.float32) for name, width in zip(PAST, widths)}
    ids, mask = padded(prompts)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    tokens = []
    for _ in range(steps):
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **cache}
        logits, *present = run(feeds)
        cache = dict(zip(PAST, present, strict=True))
        ids = logits[:, -1].argmax(-1)[:, None]
        tokens.append(ids)
        mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
        positions = mask.sum(1, keepdims=True) - 1
    return np.concatenate(tokens, axis=1).tolist()


def generate_in_pytorch(model: DeepseekV3ForCausalLM, steps: int) -> list[list[int]]:
    """What transformers itself generates."""
    ids, mask = (torch.from_numpy(each) for each in padded(PROMPTS))
    options = {"max_new_tokens": steps, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :].tolist()


def main(output: Path) -> None:
    model = tiny_model()
    exported = export(model)
    original = output.with_name(output.stem + ".original.onnx")
    ir.save(exported, original)

    # In memory: the graph that torch made goes in, and is not changed.
    result = mla_opt.optimize(exported)
    ir.save(result.model, output)

    for site in result.report.sites:
        error = f"certified to {site.certificate_error:.0e}"
        print(f"{site.name}: {site.geometry}, {site.form}, {error}")
    expected = generate_in_pytorch(model, 12)
    before, after = (generate(in_onnxruntime(path), PROMPTS, 12) for path in (original, output))
    print("transformers:", expected)
    print("original    :", before)
    print("optimized   :", after)
    if not expected == before == after:
        raise SystemExit("they do not generate the same tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("deepseek.mla.onnx"))
