"""How the inputs and outputs of a model changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import onnx_ir as ir

from mla_opt.operator.paged_attention import CALL, NUM_BLOCKS, NUM_TOKENS
from mla_opt.report.report import InterfaceChange, PortSpec

Kind = Literal["input", "output"]

_CODES = ("int8", "float8e4m3fn")
#: Of a model over packed tokens, whose inputs these are.
_PACKED = dict(
    zip(
        CALL,
        (
            "where the tokens of each sequence begin",
            "how many rows each sequence has in the cache",
            "which blocks are whose",
            "where the row of each new token goes",
        ),
        strict=True,
    )
)


def interface_changes(before: ir.Model, after: ir.Model) -> tuple[InterfaceChange, ...]:
    """Compare two models port by port, by name."""
    return (
        *_changes("input", ports(before.graph.inputs), ports(after.graph.inputs)),
        *_changes("output", ports(before.graph.outputs), ports(after.graph.outputs)),
    )


def _changes(
    kind: Kind, before: dict[str, PortSpec], after: dict[str, PortSpec]
) -> Iterator[InterfaceChange]:
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            yield InterfaceChange(kind, old, None, _why_gone(old))
        elif new != old:
            yield InterfaceChange(kind, old, new, _why_other(new))
    for name, new in after.items():
        if name not in before:
            yield InterfaceChange(kind, None, new, _why_added(new))


def _why_gone(port: PortSpec) -> str:
    if port.shape and not isinstance(port.shape[-1], int):  # a mask: rows have a width
        return "no token is padding: those of all sequences are packed"
    return "its rows are part of the latent cache now"


def _why_other(port: PortSpec) -> str:
    if port.shape is not None and NUM_TOKENS in port.shape:
        return "the tokens of all sequences are packed"
    if port.shape is not None and NUM_BLOCKS in port.shape:
        return "holds latent rows now, in blocks"
    return "holds latent rows now, [B, 1, tokens, width]"


def _why_added(port: PortSpec) -> str:
    if port.name in _PACKED:
        return _PACKED[port.name]
    if port.dtype == "float32" and port.name.endswith("_scale"):
        return "the scales of the codes of one layer"
    if port.shape is not None and len(port.shape) == 1:
        return "how many rows of each sequence's buffer are past"
    if port.dtype in _CODES:
        return "holds codes of the rows c_kv of one layer"
    if port.name.endswith("_rope_scales"):
        return "holds k_pe, and the scales of the codes, of one layer"
    return "holds the latent rows [c_kv | k_pe] of one layer"


def ports(values: Sequence[ir.Value]) -> dict[str, PortSpec]:
    """Inputs or outputs by name."""
    return {value.name or "": _port(value) for value in values}


def _port(value: ir.Value) -> PortSpec:
    shape = None
    if value.shape is not None:
        shape = tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)
    dtype = "unknown" if value.dtype is None else value.dtype.name.lower()
    return PortSpec(value.name or "", dtype, shape)
