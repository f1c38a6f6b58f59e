"""The specs worth exporting: every family by every exporter, at every opset whose graphs differ."""

from __future__ import annotations

from collections.abc import Iterator

from tests.exports.families import FAMILIES, Family
from tests.exports.spec import ExportSpec

#: 23 fuses norms, rope and attention, 24 attention only.
OPSETS = (18, 20, 23, 24)
HALF = ("deepseek_v3", "deepseek_v2")
EXPANDED = ("deepseek_v3", "deepseek_v2")
COMPONENTS = ("prefill", "decode")


def specs() -> list[ExportSpec]:
    """The whole matrix."""
    return [*dynamo(), *expanded(), *torchscript(), *half(), *hf()]


def dynamo() -> Iterator[ExportSpec]:
    """All families by torch.onnx.export(dynamo=True)."""
    for family in FAMILIES.values():
        for opset in OPSETS:
            yield from _forms(family, "dynamo", opset)


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
    for exporter, opset in (("hf", 20), ("hf_ort", 18)):
        for family in FAMILIES.values():
            for component in COMPONENTS:
                attention = family.attention[-1]
                yield ExportSpec(family.name, exporter, opset, attention, component=component)


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
