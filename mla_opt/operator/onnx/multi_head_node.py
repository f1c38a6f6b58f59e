"""What the operands of a ``MultiHeadLatentAttention`` node say of its signature, and its body."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mla_opt.operator.contract import DOMAIN, VERSION
from mla_opt.operator.kv_b import Storage
from mla_opt.operator.multi_head import Form, MultiHeadSignature
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME, BodyStyle
from mla_opt.operator.onnx.body_tape import CAST_LIKE_SINCE
from mla_opt.operator.onnx.multi_head_body import multi_head_function_body
from mla_opt.operator.onnx.node import signature_of


def multi_head_signature_of(
    operands: Mapping[str, ir.Value], storage: Storage, form: Form, causal: bool
) -> MultiHeadSignature:
    """Return the signature of a node with these operands, whose types are known."""
    return MultiHeadSignature(signature_of(operands, causal), storage, form)


def define_multi_head(
    model: ir.Model,
    signature: MultiHeadSignature,
    element_type: ir.DataType | None,
    *,
    style: BodyStyle = ONNX_RUNTIME,
) -> str:
    """Give ``model`` the function body of ``signature``, unless it has it; return its overload."""
    model.opset_imports.setdefault(DOMAIN, VERSION)
    opset, element = model.opset_imports[""], element_type or ir.DataType.FLOAT
    of_one_type = opset < CAST_LIKE_SINCE
    overload = f"{signature.overload}_{element.name.lower()}" if of_one_type else signature.overload
    body = multi_head_function_body(
        signature, opset, overload=overload, element_type=element, style=style
    )
    model.functions.setdefault(body.identifier(), body)
    return overload
