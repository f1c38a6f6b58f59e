"""Walking back from a key or a value through everything that is token-wise linear.

The walk goes through layout, scaling, casts and constant shifts, and stops at what it cannot go
through: a linear layer, an input, a row repeated for all heads, or anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.sites import PastConcat


@dataclass(slots=True)
class Leaves:
    """Where the walk stopped, and what it came through."""

    linears: list[Node] = field(default_factory=list)
    shared_rows: list[Value] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    pasts: list[PastConcat] = field(default_factory=list)
    opaque: list[Node] = field(default_factory=list)
    through: list[Value] = field(default_factory=list)


def leaves(graph: Graph, value: Value, *, stop_at: frozenset[Node] = frozenset()) -> Leaves:
    """Walk back from ``value``.

    ``stop_at`` are the linear layers that the values came from. With them given, a broadcast whose
    operand does not come from any of them is a row shared by the heads, and the walk stops there.
    """
    found = Leaves()
    pending, seen = [value], set()
    while pending:
        current = pending.pop()
        if current in seen or graph.is_constant(current):
            continue
        seen.add(current)
        ahead = _step(graph, current, found, stop_at)
        if ahead:
            found.through.append(current)
        pending.extend(ahead)
    return found


def _step(graph: Graph, value: Value, found: Leaves, stop_at: frozenset[Node]) -> list[Value]:
    node = graph.producer(value)
    if node is None:
        found.inputs.append(value)
        return []
    match graph.operation(node):
        case op.Linear():
            _add(found.linears, node)
            return []
        case op.Filled():
            return []
        case op.Broadcast(data):
            return _broadcast(graph, data, found, stop_at)
        case op.Layout(data, concat_axis) if concat_axis is not None and len(data) == 2:
            return _concat(graph, value, data, concat_axis, found)
        case op.Layout(data):
            return list(data)
        case op.Scaled(data) | op.Shifted(data) | op.Cast(data):
            return [data]
        case op.Add(left, right) if graph.is_constant(left) or graph.is_constant(right):
            return [left, right]
        case _:
            _add(found.opaque, node)
            return []


def _add(nodes: list[Node], node: Node) -> None:
    if node not in nodes:
        nodes.append(node)


def _concat(
    graph: Graph, joined: Value, data: tuple[Value, ...], axis: int, found: Leaves
) -> list[Value]:
    past, new = data
    if graph.is_input(past) and not graph.is_input(new):
        found.pasts.append(PastConcat(past=past, new=new, joined=joined, axis=axis))
        return [new]
    return list(data)


def _broadcast(graph: Graph, data: Value, found: Leaves, stop_at: frozenset[Node]) -> list[Value]:
    if not stop_at or _reaches(graph, data, stop_at):
        return [data]
    row = _innermost_broadcast(graph, data)
    if row not in found.shared_rows:
        found.shared_rows.append(row)
    return []


def _reaches(graph: Graph, value: Value, linears: frozenset[Node]) -> bool:
    return any(node in linears for node in leaves(graph, value).linears)


def _innermost_broadcast(graph: Graph, value: Value) -> Value:
    """Exporters repeat a row more than once: the row itself is under the last repetition."""
    row, current = value, value
    while (node := graph.producer(current)) is not None:
        match graph.operation(node):
            case op.Broadcast(data):
                row = current = data
            case op.Layout((data,)) | op.Scaled(data) | op.Cast(data):
                current = data
            case _:
                break
    return row
