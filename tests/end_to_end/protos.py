"""Looking at ONNX files and comparing them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import onnx

STATE = re.compile(r"past|present|indexer")


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those in branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)


def operators(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes there are of each operator, those in functions included."""
    functions = (node for function in model.functions for node in function.node)
    return Counter(node.op_type for node in (*nodes(model.graph), *functions))


def opsets(model: onnx.ModelProto) -> dict[str, int]:
    """Version by domain."""
    return {entry.domain: entry.version for entry in model.opset_import}


def properties(holder: Any) -> dict[str, str]:
    """The metadata of a model, graph, node or value."""
    return {entry.key: entry.value for entry in holder.metadata_props}


def checker_complaint(model: onnx.ModelProto) -> str:
    """What ONNX's checker has against a model; empty if nothing."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return str(error).partition(" with ")[0]
    return ""


def infer_strictly(model: onnx.ModelProto) -> onnx.ModelProto:
    """Infer every shape, and raise at the first contradiction."""
    return onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )


def as_text(value: onnx.ValueInfoProto) -> str:
    """Name, type, shape with its symbols, and doc string."""
    shape = [
        dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None)
        for dim in value.type.tensor_type.shape.dim
    ]
    return f"{value.name}: {value.type.tensor_type.elem_type}{shape} {value.doc_string}"


def ports(values: Sequence[onnx.ValueInfoProto], states: bool = True) -> list[str]:
    """Inputs or outputs as text, in order; without caches if `states` is false."""
    return [as_text(value) for value in values if states or not STATE.search(value.name)]


def meaning(node: onnx.NodeProto) -> tuple[Any, ...]:
    """All of a node but what it reads: operator, results, attributes, notes."""
    attributes = {attribute.name: attribute_value(attribute) for attribute in node.attribute}
    return (
        (node.domain, node.op_type, node.doc_string),
        tuple(node.output),
        attributes,
        properties(node),
    )


def attribute_value(attribute: onnx.AttributeProto) -> Any:
    """The value, comparable: a tensor by its content, for writers may store one in several ways."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        array = onnx.numpy_helper.to_array(value)
        return value.data_type, array.shape, array.tobytes()
    return value.SerializeToString(deterministic=True) if hasattr(value, "ListFields") else value
