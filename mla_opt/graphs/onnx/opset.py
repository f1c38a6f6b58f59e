"""Raise a model to a newer opset, where what becomes of it needs operators or types of that.

ONNX's own converter does it, on a copy whose large weights are left out: it takes one message of
less than 2 GiB, and no adapter reads a weight.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import version_converter

from mla_opt.errors import InputError, require_memory

#: Tensors up to this size stay: they may be axes or shapes that an adapter has to know.
SMALL_BYTES = 1024


def at_least(model: ir.Model, opset: int) -> ir.Model:
    """Return the model in ``opset``, itself if it is new enough.

    Raises:
        InputError: ONNX cannot convert it; the message says why.
    """
    if model.opset_imports.get("", 0) >= opset:
        return model
    if model.functions:
        raise InputError(
            f"the model has local functions and opset {model.opset_imports.get('')}: ONNX converts"
            f" only models without; export it with opset {opset}"
        )
    _check_operators(model)
    try:
        proto = version_converter.convert_version(_outline(model), opset)
    except Exception as error:
        require_memory(error)
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the model cannot be raised to opset {opset}, which is needed here: {reason}; export"
            f" it with opset {opset}"
        ) from error
    return _filled(ir.from_proto(proto), model)


def _check_operators(model: ir.Model) -> None:
    """Refuse what ONNX does not define: its converter stops there."""
    unknown = {
        node.op_type
        for node in model.graph.all_nodes()
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, "")
    }
    if unknown:
        raise InputError(
            f"the model has {', '.join(sorted(unknown))}, which ONNX does not define; they come"
            " from ONNX Runtime's optimizer: export the model without it"
        )


def _outline(model: ir.Model) -> onnx.ModelProto:
    """The model with its large weights as inputs."""
    proto = ir.to_proto(_without_weights(model))
    known = {value.name for value in proto.graph.input}
    for value in _weights(model):
        if value.name not in known:
            kind = ir.to_proto(ir.Value(name=value.name, shape=_shape(value), type=_type(value)))
            proto.graph.input.append(kind)
    return proto


def _without_weights(model: ir.Model) -> ir.Model:
    outline = model.clone()
    for value in _weights(outline):
        del outline.graph.initializers[value.name or ""]
        value.const_value = None
    return outline


def _weights(model: ir.Model) -> list[ir.Value]:
    values = model.graph.initializers.values()
    return [v for v in values if v.const_value is not None and v.const_value.nbytes > SMALL_BYTES]


def _shape(value: ir.Value) -> ir.Shape:
    assert value.const_value is not None
    return ir.Shape(value.const_value.shape.numpy())


def _type(value: ir.Value) -> ir.TensorType:
    assert value.const_value is not None
    return ir.TensorType(value.const_value.dtype)


def _filled(converted: ir.Model, source: ir.Model) -> ir.Model:
    """The converted model with the weights, the inputs and the metadata of its source."""
    weights = {value.name: value.const_value for value in _weights(source)}
    for value in list(converted.graph.inputs):
        if value.name in weights and value.name not in converted.graph.initializers:
            value.const_value = weights[value.name]
            converted.graph.register_initializer(value)
    wanted = {value.name for value in source.graph.inputs}
    kept = [value for value in converted.graph.inputs if value.name in wanted]
    converted.graph.inputs.clear()
    converted.graph.inputs.extend(kept)
    converted.metadata_props.update(source.metadata_props)
    return converted
