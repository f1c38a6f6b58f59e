"""Optimize a program of torch.export, run it, and make an ONNX file of it, one fused node a layer.

    python examples/optimize_torch_program.py [OUT.onnx]

Needs torch, transformers 5 and onnxscript. The model is a tiny DeepSeek-V3 with random weights and
a layer of experts, its cache plain tensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import torch
from optimize_in_export_pipeline import WithFlatCache, arguments, dynamic_shapes, tiny_model

import mla_opt


def exported(model: torch.nn.Module) -> torch.export.ExportedProgram:
    """A program whose batch and lengths may vary."""
    example = arguments(batch=2, new=5, past=11, padding=2)
    with torch.no_grad():
        return torch.export.export(model, example, dynamic_shapes=dynamic_shapes())


def main(output: Path) -> None:
    model = WithFlatCache(tiny_model()).eval()
    result = mla_opt.optimize(exported(model))
    print(f"{len(result.report.sites)} latent attentions absorbed, fused and verified")

    given = arguments(batch=3, new=1, past=40, padding=7)
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
