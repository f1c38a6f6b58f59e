"""One function per exporter: `ExportSpec` in, ONNX file out. What an exporter raises is raised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.exports.families import FAMILIES
from tests.exports.feeds import past_feeds, token_feeds
from tests.exports.flat import TOKENS, FlatCausalLM
from tests.exports.patches import patches_for
from tests.exports.spec import ExportSpec

#: Sizes of the example; all different, so that the exporter cannot take two axes for one.
EXAMPLE = {"batch": 2, "query": 5, "past": 11}


def export(spec: ExportSpec, path: Path) -> None:
    """Write the ONNX file of a spec."""
    with torch.no_grad(), patches_for(FAMILIES[spec.family].model_type):
        EXPORTERS[spec.exporter](spec, path)


def flat_model(spec: ExportSpec, **overrides: Any) -> FlatCausalLM:
    """The model of a spec, as the exporter sees it."""
    family = FAMILIES[spec.family]
    if spec.cache and not family.flat_cache:
        raise NotImplementedError(
            "the cache of linear-attention layers is not flat tensors that grow"
        )
    return FlatCausalLM(family.build(spec.attention, spec.dtype, **overrides), spec.cache).eval()


def example_inputs(model: FlatCausalLM, dtype: str) -> tuple[torch.Tensor, ...]:
    """Contiguous example tensors in the order of the graph's inputs."""
    past = EXAMPLE["past"] if model.layout else 0
    feeds = token_feeds(EXAMPLE["batch"], EXAMPLE["query"], past, left_padding=2, vocab=97, seed=0)
    feeds |= past_feeds(model.layout, EXAMPLE["batch"], past, dtype=dtype, seed=0)
    return tuple(torch.from_numpy(feeds[name]) for name in model.input_names)


def export_dynamo(spec: ExportSpec, path: Path, model: FlatCausalLM | None = None) -> None:
    """torch.onnx.export(dynamo=True): torch.export, then translation by onnxscript."""
    model = model or flat_model(spec)
    torch.onnx.export(
        model,
        example_inputs(model, spec.dtype),
        str(path),
        dynamo=True,
        opset_version=spec.opset,
        input_names=model.input_names,
        output_names=model.output_names,
        dynamic_shapes=_dynamic_shapes(model),
        external_data=False,
        verbose=False,
    )


def _dynamic_shapes(model: FlatCausalLM) -> dict[str, Any]:
    """Batch and every length dynamic.

    AUTO, because a total length of its own name contradicts its being past + query.
    """
    auto = torch.export.Dim.AUTO
    shapes: dict[str, Any] = {name: {0: auto, 1: auto} for name in TOKENS}
    if model.layout:
        shapes["past"] = tuple({0: auto, len(tensor.shape) - 2: auto} for tensor in model.layout)
    return shapes


def export_torchscript(spec: ExportSpec, path: Path) -> None:
    """torch.onnx.export(dynamo=False): tracing, the exporter most published models came from."""
    model = flat_model(spec)
    torch.onnx.export(
        model,
        example_inputs(model, spec.dtype),
        str(path),
        dynamo=False,
        opset_version=spec.opset,
        input_names=model.input_names,
        output_names=model.output_names,
        dynamic_axes=_dynamic_axes(model),
        do_constant_folding=True,
    )


def _dynamic_axes(model: FlatCausalLM) -> dict[str, dict[int, str]]:
    axes = {"input_ids": {0: "batch", 1: "query"}, "attention_mask": {0: "batch", 1: "total"}}
    axes |= {"position_ids": {0: "batch", 1: "query"}, "logits": {0: "batch", 1: "query"}}
    for tensor in model.layout:
        length = len(tensor.shape) - 2
        axes[tensor.name("past")] = {0: "batch", length: "past"}
        axes[tensor.name("present")] = {0: "batch", length: "total"}
    return axes


def export_hf(spec: ExportSpec, path: Path, fusions: str | None = None) -> None:
    """transformers.exporters.OnnxExporter: prefill and decode apart, with the model's own cache."""
    import onnx_ir
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    component = hf_components(spec)[spec.component]
    config = OnnxConfig(dynamic=True, opset_version=spec.opset, ort_fusions=fusions)
    program, _ = OnnxExporter().export_program(*component, config=config)
    onnx_ir.save(program, str(path))


def hf_components(spec: ExportSpec) -> dict[str, Any]:
    """The (module, inputs) pairs transformers splits generation into."""
    from transformers.exporters.utils import decompose_for_generation

    model = FAMILIES[spec.family].build(spec.attention, spec.dtype)
    ids = torch.arange(10).reshape(2, 5) % model.config.vocab_size
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return decompose_for_generation(model, inputs, multi_token_decode=True)


def export_hf_ort(spec: ExportSpec, path: Path) -> None:
    """The same with the fusions transformers applies for ONNX Runtime's CPU provider."""
    export_hf(spec, path, fusions="cpu")


EXPORTERS: dict[str, Callable[[ExportSpec, Path], None]] = {
    "dynamo": export_dynamo,
    "torchscript": export_torchscript,
    "hf": export_hf,
    "hf_ort": export_hf_ort,
}
