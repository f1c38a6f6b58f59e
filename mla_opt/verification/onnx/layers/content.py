"""Nodes and stored tensors as keys that are equal where both do, or hold, the same."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir


def content(tensor: ir.TensorProtocol) -> bytes:
    """A digest of the bytes of a tensor."""
    if tensor.dtype is ir.DataType.STRING:
        return hashlib.blake2b(repr(np.asarray(tensor.numpy()).tolist()).encode()).digest()
    return hashlib.blake2b(tensor.tobytes()).digest()


def attributes_key(node: ir.Node) -> Hashable:
    """All attributes by name; tensors by their content, branches by how they are written."""
    return tuple(sorted((name, _value(each)) for name, each in node.attributes.items()))


def _value(attribute: ir.Attr) -> Hashable:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return repr((tensor.dtype, tuple(tensor.shape.numpy()), content(tensor)))
    proto = ir.to_proto(attribute)
    return repr(proto.SerializeToString(deterministic=True))


def branches(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs inside a node."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()


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
