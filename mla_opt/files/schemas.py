"""Nodes against the standard's own description of their operators.

What reads a node relies on the operands and attributes that the standard requires of it. A node
without them is refused here, where the file is read, as every runtime refuses it.
"""

from __future__ import annotations

from functools import lru_cache

import onnx
import onnx_ir as ir
from onnx.defs import OpSchema

from mla_opt.errors import InputError
from mla_opt.files.order import bodies, named

_DEFAULT_DOMAINS = ("", "ai.onnx")


def check_nodes(model: ir.Model) -> None:
    """Check the nodes of ONNX's own operators, those of branches and functions included.

    An operator that the standard does not define is left to others.

    Raises:
        InputError: a node has too few or too many operands, lacks an attribute, or has one of
            another kind; the message names it.
    """
    for body in bodies(model):
        opset = body.opset_imports.get("", model.opset_imports.get("", 0))
        for node in ir.traversal.RecursiveGraphIterator(body):
            if node.domain in _DEFAULT_DOMAINS:
                _check_node(node, opset)


def _check_node(node: ir.Node, opset: int) -> None:
    schema = _schema(node.op_type, opset)
    if schema is None:
        return
    _check_operands(node, schema)
    for name, wanted in schema.attributes.items():
        given = node.attributes.get(name)
        if given is None:
            if wanted.required:
                raise _malformed(node, f"has no attribute {name!r}, which its operator needs")
        elif not given.is_ref() and given.type.name != str(wanted.type).rpartition(".")[2]:
            raise _malformed(node, f"has an attribute {name!r} of another kind: {given.type.name}")


def _check_operands(node: ir.Node, schema: OpSchema) -> None:
    given, made = len(node.inputs), len(node.outputs)
    if not schema.min_input <= given <= schema.max_input:
        raise _malformed(node, f"has {given} operands, more or fewer than its operator takes")
    if not schema.min_output <= made <= schema.max_output:
        raise _malformed(node, f"has {made} results, more or fewer than its operator makes")
    for formal, value in zip(schema.inputs, node.inputs, strict=False):
        if formal.option == OpSchema.FormalParameterOption.Single and value is None:
            raise _malformed(node, f"has no operand {formal.name!r}, which its operator needs")


@lru_cache(maxsize=4096)
def _schema(op_type: str, opset: int) -> OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def _malformed(node: ir.Node, what: str) -> InputError:
    return InputError(f"node {named(node)} {what}; export the model again")
