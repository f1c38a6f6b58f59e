"""Whether a value of an ONNX graph is stored, or computed from what is stored alone."""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs.dependence import depends_on_stored_only

_RANDOM = ("Bernoulli", "Multinomial")


class StoredOnly:
    """Tells of values whether they depend on stored tensors only; what was decided is kept."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def __call__(self, value: ir.Value) -> bool:
        """Whether no input of the model has a part in the value."""
        return depends_on_stored_only(value, self._known, _is_stored, _operands)


def _is_stored(value: ir.Value) -> bool | None:
    """Whether a value is constant by itself; ``None`` if its operands decide."""
    if value.is_initializer():
        return not value.is_graph_input()
    node = value.producer()
    if node is None or is_random(node) or _has_branches(node):
        return False
    return None if _operands(value) else node.op_type == "Constant"


def is_random(node: ir.Node) -> bool:
    """Whether a node makes other numbers in every call: Dropout does where it is told to train."""
    trains = node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None
    return trains or node.op_type.startswith("Random") or node.op_type in _RANDOM


def _has_branches(node: ir.Node) -> bool:
    """Whether a node has graphs of its own, which may read anything around it."""
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in graphs for attribute in node.attributes.values())


def _operands(value: ir.Value) -> list[ir.Value]:
    """What the node that makes a value reads."""
    node = value.producer()
    return [] if node is None else [each for each in node.inputs if each is not None]
