"""Nodes and stored tensors as keys that are equal where both do, or hold, the same."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Hashable, Iterator

import numpy as np
import onnx
import onnx_ir as ir


def content(tensor: ir.TensorProtocol) -> bytes:
    """A digest of the bytes of a tensor."""
    if tensor.dtype is ir.DataType.STRING:
        return hashlib.blake2b(repr(np.asarray(tensor.numpy()).tolist()).encode()).digest()
    return hashlib.blake2b(tensor.tobytes()).digest()


def node_key(model: ir.Model, node: ir.Node) -> Hashable:
    """What a node does: operator, the version of that, attributes, and the body it calls if any."""
    attributes = tuple(sorted((name, _value(each)) for name, each in node.attributes.items()))
    function = model.functions.get(node.op_identifier())
    body = None if function is None else _bodies(model)
    return (*_operator(model, node), attributes, body)


def _operator(model: ir.Model, node: ir.Node) -> tuple[Hashable, ...]:
    """The operator as the opset of a model defines it: from which one on it has been this."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    opset = model.opset_imports.get(domain, model.opset_imports.get(node.domain, 1))
    # An operator of others may be another in every opset.
    with contextlib.suppress(onnx.defs.SchemaError):
        opset = onnx.defs.get_schema(node.op_type, opset, domain).since_version
    return (domain, node.op_type, node.overload, opset)


def _bodies(model: ir.Model) -> bytes:
    """All functions of a model: one may call another."""
    digest = hashlib.blake2b()
    for function in model.functions.values():
        digest.update(ir.to_proto(function).SerializeToString(deterministic=True))
        for graph in (function.graph, *function.graph.subgraphs()):
            digest.update(_stored(graph))
    return digest.digest()


def _stored(graph: ir.Graph) -> bytes:
    """All tensors of a graph, by their content: what is written of one may only say where it is."""
    digest = hashlib.blake2b()
    tensors = [value.const_value for value in graph.initializers.values()]
    for node in graph:
        for attribute in node.attributes.values():
            tensors += _tensors(attribute)
    for tensor in tensors:
        digest.update(b"" if tensor is None else content(tensor))
    return digest.digest()


def _tensors(attribute: ir.Attr) -> list[ir.TensorProtocol]:
    if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:
        return [attribute.as_tensor()]
    return list(attribute.as_tensors()) if attribute.type == ir.AttributeType.TENSORS else []


def _value(attribute: ir.Attr) -> str:
    if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
        told = [(t.dtype, tuple(t.shape.numpy()), content(t)) for t in _tensors(attribute)]
        return repr(told)
    written = ir.to_proto(attribute).SerializeToString(deterministic=True)
    inner = [
        _stored(graph) for branch in _graphs(attribute) for graph in (branch, *branch.subgraphs())
    ]
    return repr((written, inner))


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def branches(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node."""
    for attribute in node.attributes.values():
        yield from _graphs(attribute)


def read_by(node: ir.Node) -> list[ir.Value]:
    """Operands, and what the branches of a node read of the graph around them."""
    found: dict[ir.Value, None] = dict.fromkeys(each for each in node.inputs if each is not None)
    for branch in branches(node):
        inner = list(branch.all_nodes())
        made = {output for each in inner for output in each.outputs} | set(branch.inputs)
        made |= set(branch.initializers.values())
        for each in (*(value for item in inner for value in item.inputs), *branch.outputs):
            if each is not None and each not in made and each.graph is node.graph:
                found[each] = None
    return list(found)
