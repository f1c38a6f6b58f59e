"""Reports with every field filled, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mla_opt.errors import Refusal
from mla_opt.geometry import MlaGeometry
from mla_opt.report import (
    AttentionReport,
    InspectionReport,
    InterfaceChange,
    ModelFile,
    OperatorReport,
    OptimizationReport,
    PassReport,
    PortSpec,
    SiteFacts,
    SiteReport,
    StoredBytes,
    site_report,
)

V2_LITE = MlaGeometry(16, 128, 64, 128, 512, None, 2048)


def site(layer: int, *, error: float = 1e-7, family: str = "expanded") -> SiteReport:
    facts = SiteFacts(
        name=f"model.layers.{layer}.self_attn",
        geometry=V2_LITE,
        dtype="float32",
        form="factored",
        form_reason="folding is larger",
        prefill="auto",
        prefill_reason="171 tokens",
        cache_family=family,  # type: ignore[arg-type]
        cache_layout_before="expanded" if family == "expanded" else "split",
        cache_layout_after="split",
        certificate_error=error,
        weight_bytes_before=50_000_000,
        weight_bytes_after=50_000_000,
        notes=("scale 0.07 taken from the graph",),
    )
    return site_report(facts)


def refusal(layer: int) -> Refusal:
    return Refusal(
        site=f"model.layers.{layer}.indexer",
        code="query-depends-on-latent",
        reason="the query is made from the same layer as the keys",
        nodes=(f"/layers.{layer}/MatMul",),
        remedy="nothing: this is ordinary attention",
    )


def model_file(path: str = "model.onnx") -> ModelFile:
    return ModelFile(path, "0" * 64, 1234, {"": 18, "com.microsoft": 1}, 10, "pytorch 2.13", ("w",))


def change(layer: int) -> InterfaceChange:
    return InterfaceChange(
        "input",
        PortSpec(f"past.{layer}.key", "float32", ("batch", 16, "past", 192)),
        PortSpec(f"past.{layer}.latent", "float32", ("batch", 1, None, 576)),
        "the cache holds latent rows",
    )


def report(layers: int = 3) -> OptimizationReport:
    return OptimizationReport(
        input=model_file(),
        output=model_file("model.mla.onnx"),
        options={"absorb": "auto", "verify": True, "passes": None},
        sites=tuple(site(i, error=(i + 1) * 1e-7) for i in range(layers)),
        refusals=(refusal(3), refusal(4)),
        passes=(PassReport("find_latent_attention", layers, 0, 0.125, ("a note",)),),
        interface_changes=tuple(change(i) for i in range(layers)),
        verification={
            "passed": True,
            "outputs": [{"name": "logits", "relative": 1e-6, "tolerance": 1e-4}],
        },
        notes=("opset imports kept",),
        stored=StoredBytes(100_000_000, 100_000_000),
    )


def operator(layer: int, **changes: Any) -> OperatorReport:
    whole = OperatorReport(
        name=f"model.layers.{layer}.self_attn",
        node=f"node_{layer} (mla_opt::LatentAttention)",
        num_heads=16,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        kv_lora_rank=512,
        scale=0.07,
        dtype="float32",
        cache="split",
        cache_dtype="float32",
        form="factored",
        prefill_threshold=171,
    )
    return replace(whole, **changes)


def inspection() -> InspectionReport:
    found = tuple(
        AttentionReport(
            name=f"model.layers.{i}.self_attn",
            matched=True,
            geometry=V2_LITE,
            cache_family="latent",
            nodes=(f"n{i}",),
            form="factored",
            form_reason="folding is larger",
            prefill="auto",
            prefill_reason="171 tokens",
        )
        for i in range(3)
    )
    missed = AttentionReport("model.layers.3.indexer", False, None, "none", refusal(3))
    return InspectionReport((*found, missed), model_file())
