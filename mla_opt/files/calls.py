"""What running a model takes by its own text: calls of functions, and loops without an end."""

from __future__ import annotations

import graphlib

import onnx_ir as ir

from mla_opt.errors import InputError
from mla_opt.files.order import bodies, named

MOST_NODES = 10_000_000
"""Nodes of a model with every call of a function replaced by the nodes of its body."""

MOST_TRIPS = 1 << 40
"""Trips of a loop that nothing can end early; more take longer than anybody waits."""


def check_calls(model: ir.Model) -> None:
    """Check that the functions of a model end, and how many nodes they come to.

    Runtimes put bodies in the place of calls: a function that calls itself has no end, and forty
    that call each other twice come to more nodes than any memory holds.

    Raises:
        InputError: functions call each other in a circle, or all of it is more than `MOST_NODES`.
    """
    if not model.functions:
        return
    weight: dict[ir.OperatorIdentifier, int] = {}
    for name in _innermost_first(model):
        weight[name] = _weight(model.functions[name], weight)
    total = _weight(model.graph, weight)
    if total > MOST_NODES:
        raise InputError(
            f"the functions of the model come to {total} nodes, more than {MOST_NODES}; export it"
            " without functions"
        )


def _innermost_first(model: ir.Model) -> list[ir.OperatorIdentifier]:
    calls = {
        name: {
            node.op_identifier()
            for node in ir.traversal.RecursiveGraphIterator(function)
            if node.op_identifier() in model.functions
        }
        for name, function in model.functions.items()
    }
    try:
        return list(graphlib.TopologicalSorter(calls).static_order())
    except graphlib.CycleError as error:
        around = " -> ".join(f"{domain}::{name}" for domain, name, _ in error.args[1][:4])
        raise InputError(
            f"functions of the model call each other in a circle: {around}; export it again"
        ) from None


def _weight(body: ir.Graph | ir.Function, known: dict[ir.OperatorIdentifier, int]) -> int:
    nodes = ir.traversal.RecursiveGraphIterator(body)
    return sum(known.get(node.op_identifier(), 1) for node in nodes)


def check_loops(model: ir.Model) -> None:
    """Check that no loop of the model goes on without an end.

    Raises:
        InputError: a loop has more than `MOST_TRIPS` trips, and no condition that could end it.
    """
    for body in bodies(model):
        for node in ir.traversal.RecursiveGraphIterator(body):
            if node.op_type == "Loop" and not node.domain and _is_endless(node):
                raise InputError(
                    f"node {named(node)} is a loop without an end: its condition never changes and"
                    f" its trips are more than {MOST_TRIPS}; export the model again"
                )


def _is_endless(loop: ir.Node) -> bool:
    trips = _number(loop.inputs[0])
    if loop.inputs[0] is not None and (trips is None or trips <= MOST_TRIPS):
        return False
    return _number(loop.inputs[1]) != 0 and _never_changes(loop.attributes["body"].as_graph())


def _never_changes(body: ir.Graph) -> bool:
    """Whether a loop's condition is what it was, or always true."""
    if not body.outputs:
        return False
    condition = body.outputs[0]
    while (maker := condition.producer()) is not None and maker.op_type == "Identity":
        (source,) = maker.inputs
        if source is None:
            return False
        condition = source
    if len(body.inputs) > 1 and condition is body.inputs[1]:
        return True
    return _number(condition) not in (None, 0)


def _number(value: ir.Value | None) -> int | None:
    """A stored number of one element; ``None`` where it is not stored."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype == ir.DataType.STRING:
        return None
    return int(tensor.numpy().reshape(-1)[0])
