"""What the operands of a ``MultiHeadLatentAttention`` node say of its signature, and its body."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from mla_opt.operator.kv_b import Storage
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE, Form, MultiHeadSignature
from mla_opt.operator.onnx.body_style import ONNX_RUNTIME, BodyStyle
from mla_opt.operator.onnx.multi_head_body import multi_head_function_body
from mla_opt.operator.onnx.node import define_body, signature_of


def storage_of(node: ir.Node, operands: Mapping[str, ir.Value]) -> Storage:
    """Return how the weights of a node are stored, by its attributes and these operands."""
    bits = node.attributes.get_int("bits", 0)
    zeros = operands.get("kv_b_zero_points")
    is_packed = zeros is not None and bits and zeros.dtype == ir.DataType.UINT8
    return Storage(
        bits,
        node.attributes.get_int("block_size", 0),
        node.attributes.get_int("block_rows", 1),
        "none" if zeros is None else "packed" if is_packed else "plain",
    )


def multi_head_signature_of(
    operands: Mapping[str, ir.Value],
    storage: Storage,
    form: Form,
    causal: bool,
    *,
    even: bool = False,
) -> MultiHeadSignature:
    """Return the signature of a node with these operands, whose types are known.

    ``even`` says that its caches hold halves of rows.
    """
    attention = signature_of(operands, causal, even=even)
    return MultiHeadSignature(attention, storage, form, factors="kv_b_factors" in operands)


def define_multi_head(
    model: ir.Model,
    signature: MultiHeadSignature,
    element_type: ir.DataType | None,
    *,
    style: BodyStyle = ONNX_RUNTIME,
) -> str:
    """Give ``model`` the function body of ``signature``, unless it has it; return its overload."""

    def make(opset: int, overload: str, element: ir.DataType) -> ir.Function:
        return multi_head_function_body(
            signature, opset, overload=overload, element_type=element, style=style
        )

    return define_body(model, MULTI_HEAD_OP_TYPE, signature.overload, element_type, make)
