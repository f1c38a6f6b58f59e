"""The specs worth exporting: every family where it can go, and more opsets for the common ones."""

from __future__ import annotations

from collections.abc import Iterator

from tests.exports.families import FAMILIES, Family
from tests.exports.spec import ExportSpec

#: Families with every opset whose graphs differ: 23 fuses norms, rope and attention, 24 attention.
COMMON = ("deepseek_v3", "deepseek_v2", "minicpm3", "mistral4", "youtu")
OPSETS, COMMON_OPSETS = (18, 24), (18, 20, 23, 24)
#: Variants of a common family, at the opset where their difference is fused.
VARIANTS = ("deepseek_v3_halves", "deepseek_v3_yarn", "deepseek_v2_noqlora")
HALF = ("deepseek_v3", "deepseek_v2")
#: transformers' exporter needs a causal LM to generate with, and minutes for linear attention.
HF = (
    "deepseek_v3",
    "deepseek_v2",
    "minicpm3",
    "mistral4",
    "youtu",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
)
HF_DECODE = ("axk1", "axk2", "dots3_note", "longcat_flash", "hy_v4", "kimi_linear")
HF_ORT = ("deepseek_v3", "deepseek_v2", "minicpm3", "youtu", "deepseek_v3_halves")
EXPANDED = ("deepseek_v3", "deepseek_v2")


def specs() -> list[ExportSpec]:
    """The whole matrix, without repeats, the most common first."""
    parts = (common(), expanded(), torchscript(), every_family(), variants(), half(), hf())
    return list(dict.fromkeys(spec for part in parts for spec in part))


def common() -> Iterator[ExportSpec]:
    """The common families by torch.onnx.export(dynamo=True)."""
    for name in COMMON:
        for opset in COMMON_OPSETS:
            yield from _forms(FAMILIES[name], "dynamo", opset)


def every_family() -> Iterator[ExportSpec]:
    """All families by torch.onnx.export(dynamo=True)."""
    for opset in OPSETS:
        for family in FAMILIES.values():
            yield from _forms(family, "dynamo", opset)


def variants() -> Iterator[ExportSpec]:
    """Variants at the opset with fused rope and norms."""
    for name in VARIANTS:
        yield from _forms(FAMILIES[name], "dynamo", 23)


def torchscript() -> Iterator[ExportSpec]:
    """All families by torch.onnx.export(dynamo=False)."""
    for family in FAMILIES.values():
        yield from _forms(family, "torchscript", 18)
    yield ExportSpec("deepseek_v3", "torchscript", 17)


def half() -> Iterator[ExportSpec]:
    """Half precision."""
    for name in HALF:
        for opset in (18, 23):
            for spec in _forms(FAMILIES[name], "dynamo", opset):
                yield ExportSpec(name, "dynamo", opset, spec.attention, spec.cache, "float16")


def hf() -> Iterator[ExportSpec]:
    """transformers' own exporter, at its default opset, and with its ONNX Runtime fusions."""
    for name in HF:
        yield ExportSpec(name, "hf", 20, FAMILIES[name].attention[-1], component="prefill")
    for name in (*HF, *HF_DECODE):
        yield ExportSpec(name, "hf", 20, FAMILIES[name].attention[-1], component="decode")
    for name in HF_ORT:
        yield ExportSpec(name, "hf_ort", 18, component="decode")
        yield ExportSpec(name, "hf_ort", 18, component="prefill")


def expanded() -> Iterator[ExportSpec]:
    """Transformers 4.57: keys and values cached expanded."""
    for opset in (18, 23):
        for name in EXPANDED:
            yield from _forms(FAMILIES[name], "dynamo457", opset)
    yield ExportSpec("deepseek_v3", "optimum457", 18)
    yield ExportSpec("deepseek_v3", "optimum457", 18, cache=False)


def _forms(family: Family, exporter: str, opset: int) -> Iterator[ExportSpec]:
    """Each attention implementation, with a cache where the harness can pass one, and without."""
    for cache in (True, False) if family.flat_cache else (False,):
        for attention in reversed(family.attention):
            yield ExportSpec(family.name, exporter, opset, attention, cache)
