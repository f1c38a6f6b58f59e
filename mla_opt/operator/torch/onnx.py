"""The PyTorch operator on its way through `torch.onnx.export`.

    program = torch.onnx.export(exported, custom_translation_table=mla_opt.onnx_translation_table())
    mla_opt.attach_function_bodies(program)
    program.save("model.onnx")

The exporter makes a bare node of each call: it inlines the ONNX functions that it is given, and
takes an operator to have one signature. Attaching gives each node the name and the outputs of its
own signature, and the model its bodies, so that it runs with and without the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx
import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.operator.contract import (
    ATTRIBUTES,
    DOMAIN,
    INPUTS,
    OP_TYPE,
    OUTPUTS,
    VERSION,
    Signature,
    is_operator,
)
from mla_opt.operator.onnx.node import define, settle, signature_of

_IR_VERSION_OF_FUNCTIONS = 8
_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
# Type variable of each input, and what it stands for.
_TYPES = {"query": "T", "latent": "T", "past_len": "I", "bias": "B", "sink": "T", "output": "T"}
_CONSTRAINTS = {
    "T": _FLOATS,
    "C": _FLOATS,
    "I": ["tensor(int32)"],
    "B": ["tensor(bool)", *_FLOATS],
}


def onnx_translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ``custom_translation_table`` that takes `torch.onnx.export` past the operator.

    For ``torch.ops.mla_opt.latent_attention``; a program with the in-place form has nothing that
    ONNX could say.

    Raises:
        InputError: torch or onnxscript is not installed.
    """
    try:
        import torch
        from onnxscript.values import Op, Opset
    except ImportError as error:
        raise InputError(f"exporting to ONNX needs torch and onnxscript: {error}") from error
    import mla_opt.operator.torch.op  # noqa: F401

    node = Op(Opset(DOMAIN, VERSION), OP_TYPE, _schema())

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

    return {torch.ops.mla_opt.latent_attention.default: translate}


def attach_function_bodies(program: Any) -> ir.Model:
    """Complete every ``LatentAttention`` node of ``program``, in place, and give it its body.

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
    for node in list(_latent_attentions(model)):
        signature = _signature(node)
        _trim_outputs(node, signature)
        node.resize_inputs(len(signature.slots))
        query = node.inputs[0]
        node.op_type = OP_TYPE
        node.overload = define(model, signature, query.dtype if query else None)
        model.ir_version = max(model.ir_version, _IR_VERSION_OF_FUNCTIONS)
    settle(model)
    return model


def _latent_attentions(model: ir.Model) -> Iterator[ir.Node]:
    for node in model.graph.all_nodes():
        if is_operator(node.domain, node.op_type):
            yield node


def _signature(node: ir.Node) -> Signature:
    operands = {name: value for name, value in zip(INPUTS, node.inputs) if value is not None}
    for name in ("query", "cache", "bias"):
        if name in operands and operands[name].dtype is None:
            raise InputError(f"{OP_TYPE} {node.name!r}: the type of its {name} is not known")
    return signature_of(operands, bool(node.attributes["causal"].as_int()))


def _trim_outputs(node: ir.Node, signature: Signature) -> None:
    """Remove the outputs that are tensors of the shape [0] in PyTorch."""
    for name, value in list(zip(OUTPUTS, node.outputs))[len(signature.outputs) :]:
        if value.uses() or value.is_graph_output():
            raise InputError(
                f"{OP_TYPE} {node.name!r}: its output {name} is used, but with the inputs "
                f"{', '.join(signature.inputs)} there is none"
            )
    node.resize_outputs(len(signature.outputs))


def _schema() -> onnx.defs.OpSchema:
    """Return the schema for any signature. It isn't registered: that would hide the bodies."""
    kinds = onnx.defs.OpSchema.AttrType
    attributes = (kinds.FLOAT, kinds.INT, kinds.INT, kinds.STRING, kinds.STRING)
    return onnx.defs.OpSchema(
        OP_TYPE,
        DOMAIN,
        VERSION,
        inputs=[_parameter(name, optional=name != "query") for name in INPUTS],
        outputs=[_parameter(name, optional=name != "output") for name in OUTPUTS],
        type_constraints=[(name, types, "") for name, types in _CONSTRAINTS.items()],
        attributes=[
            onnx.defs.OpSchema.Attribute(name, kind, required=True)
            for name, kind in zip(ATTRIBUTES, attributes)
        ],
    )


def _parameter(name: str, optional: bool) -> onnx.defs.OpSchema.FormalParameter:
    options = onnx.defs.OpSchema.FormalParameterOption
    return onnx.defs.OpSchema.FormalParameter(
        name,
        _TYPES.get(name, "C"),
        param_option=options.Optional if optional else options.Single,
    )
