"""Local functions of a model, put in the place of their calls: attention may lie inside of them.

Exporters write whole layers as functions, and scatter into caches by functions of standard
operators. A function that stands for an operator with kernels of its own stays a call.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from mla_opt.graphs.onnx.nbits import given_back
from mla_opt.graphs.onnx.operations import READERS
from mla_opt.operator.contract import DOMAIN

KERNELS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.ms.internal.nhwc", DOMAIN})
"""Domains whose operators runtimes know, with a function in the file or without."""


def inlined(model: ir.Model) -> ir.Model:
    """A copy without the functions that can be put in the place of their calls.

    ``mla_opt::MatMulNBits`` is read as the operator that it stands for.

    The model itself where there are none, or where they cannot be told apart from what is there.
    """
    model = given_back(model)
    if not any(_can_go(model, function) for function in model.functions.values()):
        return model
    copy = model.clone()
    try:
        InlinePass(lambda function: _can_go(copy, function))(copy)
    except (ValueError, ir.passes.PreconditionError):
        return model
    return model if _shared_names(copy) - _shared_names(model) else copy


def _can_go(model: ir.Model, function: ir.Function) -> bool:
    """Whether a function is the model's own, of its opset, and takes no graphs."""
    if function.domain in KERNELS or (function.domain, function.name) in READERS:
        return False
    imports = model.opset_imports
    alike = all(imports.get(name, opset) == opset for name, opset in function.opset_imports.items())
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return alike and not any(each.type in graphs for each in function.attributes.values())


def _shared_names(model: ir.Model) -> set[str]:
    """Names that stand for several values, as in two branches."""
    names = Counter(
        value.name or "" for graph in model.graphs() for node in graph for value in node.outputs
    )
    return {name for name, count in names.items() if count > 1}
