"""What the operands of a ``LatentAttention`` node say of its signature, and the body it needs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mla_opt.operator.contract import DOMAIN, VERSION, BiasKind, Signature
from mla_opt.operator.onnx.function_body import function_body


def signature_of(operands: Mapping[str, ir.Value], causal: bool) -> Signature:
    """Return the signature of a node with these operands, whose types are known."""
    return Signature(
        has_latent="latent" in operands,
        has_cache="cache" in operands,
        in_place="past_len" in operands,
        split="rope_cache" in operands,
        bias=_bias_kind(operands),
        sink="sink" in operands,
        causal=causal,
        narrow="cache" in operands and operands["cache"].dtype != operands["query"].dtype,
    )


def define(
    model: ir.Model,
    signature: Signature,
    element_type: ir.DataType | None,
    *,
    adaptive: bool = True,
) -> None:
    """Give ``model`` the function body of ``signature``, unless it has it."""
    model.opset_imports.setdefault(DOMAIN, VERSION)
    body = function_body(
        signature,
        model.opset_imports[""],
        overload=signature.overload,
        element_type=element_type or ir.DataType.FLOAT,
        adaptive=adaptive,
    )
    model.functions.setdefault(body.identifier(), body)


def _bias_kind(operands: Mapping[str, ir.Value]) -> BiasKind:
    bias = operands.get("bias")
    if bias is None:
        return "none"
    return "boolean" if bias.dtype == ir.DataType.BOOL else "additive"
