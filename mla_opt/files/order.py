"""Nodes in an order in which they can run: each one behind those that make what it reads.

ONNX asks for this order and ONNX Runtime does not: its quantizer and its float16 converter append
nodes at the end of the file. Everything here that walks or copies a graph relies on the order.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterator

import onnx_ir as ir

from mla_opt.errors import InputError


def put_in_order(model: ir.Model) -> None:
    """Sort the nodes of the graph, its branches and the functions, where they are out of order.

    Raises:
        InputError: no order exists, as nodes read each other in a circle, or a node reads what
            nothing makes. The message names the node.
    """
    for body in bodies(model):
        _check_closed(body)
        if not _in_order(body, set()):
            _check_no_circle(body)
            body.sort()


def check_order(model: ir.Model) -> None:
    """Check that the nodes of a model, which is not to be changed, are in order.

    Raises:
        InputError: as :func:`put_in_order`, or nodes are out of order.
    """
    for body in bodies(model):
        _check_closed(body)
        if not _in_order(body, set()):
            _check_no_circle(body)
            raise InputError(
                "the nodes of the model are not in the order in which they run; sort them first:"
                " model.graph.sort(), and sort() of every function"
            )


def bodies(model: ir.Model) -> tuple[ir.Graph | ir.Function, ...]:
    """Return the main graph and the functions of a model."""
    return (model.graph, *model.functions.values())


def _in_order(body: ir.Graph | ir.Function, made: set[ir.Value]) -> bool:
    """Whether every node reads only what is made before it; adds what is made here to ``made``."""
    for node in body:
        if any(value.producer() is not None and value not in made for value in _read(node)):
            return False
        if not all(_in_order(branch, made) for branch in _branches(node)):
            return False
        made.update(node.outputs)
    return True


def _check_closed(body: ir.Graph | ir.Function) -> None:
    """Check that everything that is read comes from a node, an input or a stored tensor."""
    for node in ir.traversal.RecursiveGraphIterator(body):
        for value in _read(node):
            if not _has_source(value):
                raise InputError(
                    f"node {named(node)} reads {value.name!r}, which no node makes and the model"
                    " does not store; export the model again"
                )
        for branch in _branches(node):
            _check_outputs(branch, f"a branch of node {named(node)}")
    _check_outputs(
        body, f"function {body.name!r}" if isinstance(body, ir.Function) else "the graph"
    )


def _check_outputs(body: ir.Graph | ir.Function, where: str) -> None:
    for value in body.outputs:
        if not _has_source(value):
            raise InputError(
                f"{where} has the output {value.name!r}, which no node of it makes; export the"
                " model again"
            )


def _has_source(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def _check_no_circle(body: ir.Graph | ir.Function) -> None:
    """Check that no node waits for itself. A node waits for all nodes of its branches, too."""
    waits: dict[ir.Node, list[ir.Node]] = {}
    for node in ir.traversal.RecursiveGraphIterator(body):
        makers = (value.producer() for value in _read(node))
        inner = (each for branch in _branches(node) for each in branch)
        waits[node] = [each for each in (*makers, *inner) if each is not None]
    try:
        graphlib.TopologicalSorter(waits).prepare()
    except graphlib.CycleError as error:
        first, *others = error.args[1][:-1]
        through = f", by way of node {named(others[0])}" if others else ""
        raise InputError(
            f"node {named(first)} waits for its own result{through}: no order of the nodes exists;"
            " export the model again"
        ) from None


def _read(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs if value is not None)


def _branches(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def named(node: ir.Node) -> str:
    """Name and operator of a node, for messages."""
    made = next((value.name for value in node.outputs if value.name), "")
    return f"{node.name or made!r} ({node.op_type})"
