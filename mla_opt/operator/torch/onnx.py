"""The PyTorch operators on their way through `torch.onnx.export`.

    program = torch.onnx.export(exported, custom_translation_table=mla_opt.onnx_translation_table())
    mla_opt.attach_function_bodies(program)
    program.save("model.onnx")

The exporter makes a bare node of each call: it inlines the ONNX functions that it is given, and
takes an operator to have one signature. Attaching gives each node the name and the outputs of its
own signature, and the model its bodies, so that it runs with and without the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.operator import contract
from mla_opt.operator.contract import DOMAIN, OUTPUTS, VERSION, Signature, is_operator
from mla_opt.operator.multi_head import INPUTS as MULTI_HEAD_INPUTS
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPE, Form, MultiHeadSignature, is_multi_head
from mla_opt.operator.onnx.multi_head_node import (
    define_multi_head,
    multi_head_signature_of,
    storage_of,
)
from mla_opt.operator.onnx.node import define, settle, signature_of
from mla_opt.operator.torch.onnx_schema import multi_head_schema, schema

_IR_VERSION_OF_FUNCTIONS = 8
_AnySignature = Signature | MultiHeadSignature


def onnx_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` that takes `torch.onnx.export` past the operators.

    For ``torch.ops.mla_opt.latent_attention`` and ``multi_head_latent_attention``; a program with
    an in-place form has nothing that ONNX could say.

    Raises:
        InputError: torch or onnxscript is not installed.
    """
    try:
        import torch
        from onnxscript.values import Op, Opset
    except ImportError as error:
        raise InputError(f"exporting to ONNX needs torch and onnxscript: {error}") from error
    import mla_opt.operator.torch.op  # noqa: F401

    opset, operators = Opset(DOMAIN, VERSION), torch.ops.mla_opt
    latent = Op(opset, contract.OP_TYPE, schema())
    multi_head = Op(opset, MULTI_HEAD_OP_TYPE, multi_head_schema())
    return {
        operators.latent_attention.default: _translation(latent),
        operators.multi_head_latent_attention.default: _multi_head_translation(multi_head),
    }


def _translation(node: Callable[..., Any]) -> Callable[..., Any]:
    def translate(
        query: Any,
        latent: Any = None,
        cache: Any = None,
        past_len: Any = None,
        bias: Any = None,
        sink: Any = None,
        rope_cache: Any = None,
        scale: float = 1.0,
        kv_lora_rank: int = 0,
        causal: bool = False,
    ) -> Any:
        operands = (query, latent, cache, past_len, bias, sink, rope_cache)
        attributes = Signature(causal=causal).node_attributes(scale, kv_lora_rank)
        return node(*operands, **attributes)

    return translate


def _multi_head_translation(node: Callable[..., Any]) -> Callable[..., Any]:
    def translate(
        query: Any,
        kv_b: Any,
        latent: Any = None,
        cache: Any = None,
        past_len: Any = None,
        bias: Any = None,
        sink: Any = None,
        rope_cache: Any = None,
        kv_b_scales: Any = None,
        kv_b_zero_points: Any = None,
        kv_b_factors: Any = None,
        scale: float = 1.0,
        kv_lora_rank: int = 0,
        qk_nope_head_dim: int = 0,
        v_head_dim: int = 0,
        causal: bool = False,
        bits: int = 0,
        block_size: int = 0,
        block_rows: int = 1,
        form: str = "auto",
    ) -> Any:
        operands = (query, kv_b, latent, cache, past_len, bias, sink, rope_cache)
        return node(
            *operands,
            kv_b_scales,
            kv_b_zero_points,
            kv_b_factors,
            **Signature(causal=causal).node_attributes(scale, kv_lora_rank),
            qk_nope_head_dim=qk_nope_head_dim,
            v_head_dim=v_head_dim,
            bits=bits,
            block_size=block_size,
            block_rows=block_rows,
            form=form,
        )

    return translate


def attach_function_bodies(program: Any) -> ir.Model:
    """Complete every node of ours in ``program``, in place, and give it its body.

    Args:
        program: what `torch.onnx.export` returns, or an `onnx_ir.Model`.

    Returns:
        The model.

    Raises:
        InputError: no such program; a node whose operands have no type, or of which an output is
            used that its signature does not have.
    """
    model = getattr(program, "model", program)
    if not isinstance(model, ir.Model):
        raise InputError(
            f"attach_function_bodies takes an ONNXProgram or an onnx_ir.Model, not a "
            f"{type(program).__name__}"
        )
    for node in list(_ours(model)):
        operands = _operands(node)
        query = node.inputs[0]
        element = query.dtype if query else None
        signature: _AnySignature
        if is_multi_head(node.domain, node.op_type):
            signature = _multi_head_signature(node, operands)
            node.op_type, overload = (
                MULTI_HEAD_OP_TYPE,
                define_multi_head(model, signature, element),
            )
        else:
            signature = signature_of(operands, _is_causal(node))
            overload = define(model, signature, element)
            node.op_type = contract.OP_TYPE
        node.overload = overload
        _trim_outputs(node, signature)
        node.resize_inputs(len(signature.slots))
        model.ir_version = max(model.ir_version, _IR_VERSION_OF_FUNCTIONS)
    settle(model)
    return model


def _ours(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph.all_nodes():
        key = (node.domain, node.op_type)
        if is_operator(*key) or is_multi_head(*key):
            yield node


def _operands(node: ir.Node) -> dict[str, ir.Value]:
    """Operands that are there, by name; their types are known."""
    names = MULTI_HEAD_INPUTS if is_multi_head(node.domain, node.op_type) else contract.INPUTS
    operands = {name: value for name, value in zip(names, node.inputs) if value is not None}
    for name in ("query", "cache", "bias", "kv_b_zero_points"):
        if name in operands and operands[name].dtype is None:
            raise InputError(f"{node.op_type} {node.name!r}: the type of its {name} is not known")
    return operands


def _multi_head_signature(node: ir.Node, operands: dict[str, ir.Value]) -> MultiHeadSignature:
    form = cast(Form, node.attributes.get_string("form", "auto"))
    return multi_head_signature_of(operands, storage_of(node, operands), form, _is_causal(node))


def _is_causal(node: ir.Node) -> bool:
    return bool(node.attributes["causal"].as_int())


def _trim_outputs(node: ir.Node, signature: _AnySignature) -> None:
    """Remove the outputs that are tensors of the shape [0] in PyTorch."""
    for name, value in list(zip(OUTPUTS, node.outputs))[len(signature.outputs) :]:
        if value.uses() or value.is_graph_output():
            raise InputError(
                f"{node.op_type} {node.name!r}: its output {name} is used, but with the inputs "
                f"{', '.join(signature.inputs)} there is none"
            )
    node.resize_outputs(len(signature.outputs))
