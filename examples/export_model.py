"""Export a model of transformers to ONNX, so that mla-opt can read it.

    python examples/export_model.py [OUT.onnx]

Needs torch 2.13, transformers 5 and onnxscript. The model is a small DeepSeek-V3 with experts and
random weights. For one of yours, replace what makes `model` and `config`. The file takes prompts of
different lengths, padded on the left, and a cache of any length. Two lines are easy to miss:
without `set_experts_implementation` the export of a mixture of experts fails, and the cache must go
in and out as plain tensors.
"""

import sys

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache

# For your model: AutoModelForCausalLM.from_pretrained(...), and config = model.config
config = DeepseekV3Config(
    vocab_size=128,
    hidden_size=96,
    intermediate_size=96,
    moe_intermediate_size=16,
    num_hidden_layers=2,
    first_k_dense_replace=1,
    num_attention_heads=4,
    num_key_value_heads=4,
)
model = DeepseekV3ForCausalLM(config).eval()
model.set_experts_implementation("batched_mm")  # the exporter cannot translate the default


class WithFlatCache(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, *past):
        cache = DynamicCache(zip(past[::2], past[1::2]), config=self.model.config)
        logits = self.model(input_ids, attention_mask, position_ids, cache).logits
        return logits, *(half for layer in cache.layers for half in (layer.keys, layer.values))


flat = WithFlatCache(model).eval()
# An example of a call: 2 sequences, 5 new tokens, 11 in the cache. All sizes differ on purpose.
widths = {"keys": config.kv_lora_rank, "values": config.qk_rope_head_dim}
names = [f"{layer}.{part}" for layer in range(config.num_hidden_layers) for part in widths]
past = [torch.zeros(2, 1, 11, widths[name.split(".")[1]]) for name in names]
tokens, mask = (torch.ones(2, size, dtype=torch.long) for size in (5, 16))
example = (tokens, mask, torch.arange(11, 16).repeat(2, 1), *past)

auto = torch.export.Dim.AUTO  # sizes that may change from call to call
shapes = {name: {0: auto, 1: auto} for name in ("input_ids", "attention_mask", "position_ids")}
inputs = [*shapes, *(f"past.{name}" for name in names)]
shapes["past"] = tuple({0: auto, 2: auto} for _ in past)
outputs = ["logits", *(f"present.{name}" for name in names)]
given = {"dynamic_shapes": shapes, "input_names": inputs, "output_names": outputs}


def main(path: str) -> None:
    torch.onnx.export(flat, example, path, dynamo=True, **given)
    print(f"wrote {path}: {type(model).__name__}, {config.num_hidden_layers} layers")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["model.onnx"])
