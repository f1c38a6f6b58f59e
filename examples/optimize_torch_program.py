"""Optimize a program of torch.export, run it, and make an ONNX file of it, one fused node a layer.

    python examples/optimize_torch_program.py [OUT.onnx]

Needs torch, transformers and onnxscript. The model is a tiny DeepSeek-V3 with random weights, its
cache plain tensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import torch
from optimize_in_export_pipeline import LATENT, LAYERS, ROPE, WithFlatCache, tiny_model

import mla_opt


def exported(model: torch.nn.Module) -> torch.export.ExportedProgram:
    """A program whose batch and lengths may vary."""
    auto = torch.export.Dim.AUTO
    past = tuple({0: auto, 2: auto} for _ in range(2 * LAYERS))
    shapes = {"input_ids": {0: auto, 1: auto}, "position_ids": {0: auto, 1: auto}, "past": past}
    with torch.no_grad():
        return torch.export.export(model, arguments(2, 3, 5), dynamic_shapes=shapes)


def arguments(batch: int, new: int, past: int) -> tuple[torch.Tensor, ...]:
    """Tokens and a made-up past."""
    ids = torch.randint(0, 128, (batch, new))
    positions = torch.arange(past, past + new).expand(batch, new).contiguous()
    caches = [torch.randn(batch, 1, past, width) for _ in range(LAYERS) for width in (LATENT, ROPE)]
    return ids, positions, *caches


def main(output: Path) -> None:
    model = WithFlatCache(tiny_model())
    result = mla_opt.optimize(exported(model))
    print(f"{len(result.report.sites)} latent attentions absorbed, fused and verified")

    given = arguments(1, 1, 40)
    with torch.no_grad():
        expected, *_ = model(*given)
        logits, *_ = result.model.module()(*given)
    print(f"PyTorch: off by {float((logits - expected).abs().max()):.0e}")

    table = mla_opt.onnx_translation_table()
    program = torch.onnx.export(result.model, custom_translation_table=table, verbose=False)
    mla_opt.attach_function_bodies(program)
    program.save(output)

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(mla_opt.kernel_library()))
    session = onnxruntime.InferenceSession(output, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    logits, *_ = session.run(None, {n: tensor.numpy() for n, tensor in zip(names, given)})
    print(f"ONNX Runtime: off by {float(abs(logits - expected.numpy()).max()):.0e}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "tiny_deepseek_program.onnx"))
