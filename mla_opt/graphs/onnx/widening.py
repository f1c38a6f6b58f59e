"""bfloat16 as float32: the same numbers, without rounding the result of every operator.

ONNX Runtime's CPU provider has no kernels for most operators in bfloat16. In float32 a model can be
run, and be compared with another; every bfloat16 number is one of float32. Nothing is written
anywhere: tensors are converted when they are asked for.
"""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs.onnx.made_tensors import cast_tensor

_NARROW, _WIDE = ir.DataType.BFLOAT16, ir.DataType.FLOAT

_TYPES = frozenset({"dtype", "output_dtype", "precision", "softmax_precision", "stash_type", "to"})
"""Attributes that name an element type."""


def uses_bfloat16(model: ir.Model) -> bool:
    """Whether anything in a model is stored, computed or converted to bfloat16."""
    graphs = list(model.graphs())
    values = (value for graph in graphs for value in (*graph.inputs, *graph.initializers.values()))
    if any(value.dtype == _NARROW for value in values):
        return True
    return any(_names_narrow(a) for graph in graphs for n in graph for a in n.attributes.values())


def widen(model: ir.Model) -> None:
    """Make everything float32 that is bfloat16, in place."""
    functions = model.functions.values()
    for graph in (*model.graphs(), *(function.graph for function in functions)):
        for value in (*graph.inputs, *graph.initializers.values()):
            _widen_value(value)
        for node in graph:
            for output in node.outputs:
                _widen_value(output)
            for name, attribute in tuple(node.attributes.items()):
                node.attributes[name] = _widened(attribute)


def _widen_value(value: ir.Value) -> None:
    if value.dtype == _NARROW:
        value.dtype = _WIDE
    tensor = value.const_value
    if tensor is not None and tensor.dtype == _NARROW:
        value.const_value = widened_tensor(tensor)


def widened_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """The same numbers in float32, converted when they are asked for."""
    return cast_tensor(tensor, _WIDE, tensor.name)


def _names_narrow(attribute: ir.Attr) -> bool:
    if attribute.type == ir.AttributeType.TENSOR:
        return bool(attribute.as_tensor().dtype == _NARROW)
    named = attribute.name in _TYPES and attribute.type == ir.AttributeType.INT
    return named and not attribute.is_ref() and attribute.as_int() == _NARROW


def _widened(attribute: ir.Attr) -> ir.Attr:
    if attribute.is_ref() or not _names_narrow(attribute):
        return attribute
    if attribute.type == ir.AttributeType.TENSOR:
        return ir.AttrTensor(attribute.name, widened_tensor(attribute.as_tensor()))
    return ir.AttrInt64(attribute.name, int(_WIDE))
