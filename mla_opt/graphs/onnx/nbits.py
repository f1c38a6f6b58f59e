"""``mla_opt::MatMulNBits`` read as the operator of ONNX Runtime that it stands for."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from mla_opt.graphs.onnx.made_tensors import cast_tensor
from mla_opt.operator.contract import DOMAIN
from mla_opt.operator.matmul_nbits import (
    INPUTS,
    NBITS_OP_TYPE,
    RUNTIME_DOMAIN,
    SCALES,
    is_nbits,
)


def given_back(model: ir.Model) -> ir.Model:
    """``model`` with ONNX Runtime's operator in the place of this; itself where it has none.

    What is computed is the same, to the last bit of every weight.
    """
    if not any(map(is_nbits, _nodes(model))):
        return model
    copy = model.clone()
    widened: dict[ir.Value, ir.Value] = {}
    for node in [node for node in _nodes(copy) if is_nbits(node)]:
        node.domain = RUNTIME_DOMAIN
        scales = dict(zip(INPUTS, node.inputs)).get("scales")
        if scales is None or scales.dtype is not ir.DataType.FLOAT16:
            continue
        if scales.const_value is None:
            node.replace_input_with(SCALES, _cast_before(node, scales))
            continue
        if scales not in widened:
            widened[scales] = _widened(copy.graph, scales, scales.const_value)
        node.replace_input_with(SCALES, widened[scales])
    copy.functions.pop((DOMAIN, NBITS_OP_TYPE, ""), None)
    return copy


def _nodes(model: ir.Model) -> Iterable[ir.Node]:
    return ir.traversal.RecursiveGraphIterator(model.graph)


def _cast_before(node: ir.Node, scales: ir.Value) -> ir.Value:
    """Scales that a node of the model makes, as float32 numbers."""
    cast = ir.node("Cast", [scales], {"to": int(ir.DataType.FLOAT)})
    assert node.graph is not None
    node.graph.insert_before(node, cast)
    return cast.outputs[0]


def _widened(graph: ir.Graph, scales: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """float16 scales as a stored tensor of float32 numbers."""
    name = f"{scales.name}/float32"
    wide = ir.Value(name=name, shape=scales.shape, type=ir.TensorType(ir.DataType.FLOAT))
    wide.const_value = cast_tensor(tensor, ir.DataType.FLOAT, name)
    graph.register_initializer(wide)
    return wide
