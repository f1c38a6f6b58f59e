"""Rows of the past and new ones, as they are read together.

    grown      concat(past, new)
    buffer     put(past, new)
    its front  slice(put(past, new), 0, end)

A buffer may have room for more sequences than a call has. Then its first ones are written, and put
back where they were:

    past [Bmax, M, ...] -- slice [B, M, ...] -- put new rows --+-- slice --> the rows of this call
                   +------------------------------------------ write over --> the buffer afterwards
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value


@dataclass(frozen=True, slots=True)
class RowsRead:
    """What is read together: ``written`` is all of it, ``count`` how much of that is read.

    ``count`` is ``None`` where all rows are read, ``put`` where they grow.
    """

    past: Value
    new: Value
    axis: int
    written: Value
    put: op.Put | None = None
    count: Value | None = None


def rows_read(graph: Graph, value: Value) -> RowsRead | None:
    """The rows that a value is, where past and new ones are put together."""
    node = graph.producer(value)
    operation = None if node is None else graph.operation(node)
    if not isinstance(operation, op.Layout):
        return None
    match operation.move, operation.data:
        case op.Joined(axis), (past, new):
            return RowsRead(past, new, axis, value)
        case op.Put(axis) as put, (past, new):
            return RowsRead(past, new, axis, value, put)
        case op.Along(((axis, True),), count), (whole,):
            read = rows_read(graph, whole)
            if count is None or isinstance(count, int) or read is None or read.count is not None:
                return None
            return replace(read, count=count) if read.put and read.axis == axis else None
    return None


def first_of(operation: op.Layout) -> int | None:
    """The axis of which an operation takes the first places."""
    match operation.move:
        case op.Along(((axis, True),), count) if count is not None:
            return axis
    return None


def put_back(graph: Graph, whole: Value, written: Value) -> Iterator[Node]:
    """The nodes that write first sequences back over those that they were."""
    for node in graph.consumers(written):
        operation = graph.operation(node)
        if isinstance(operation, op.Layout) and operation.data == (whole, written):
            move = operation.move
            if isinstance(move, op.Written) and all(front for _, front in move.axes):
                yield node


def room_behind(graph: Graph, operation: op.Layout) -> tuple[Value, int] | None:
    """Zeros that are joined to something, behind it, and the axis of them along which they are."""
    if not isinstance(operation.move, op.Joined) or len(operation.data) != 2:
        return None
    zeros = _counted(graph, operation.data[1], operation.move.axis)
    node = graph.producer(zeros)
    spread = None if node is None else graph.operation(node)
    content = graph.constant(spread.data) if isinstance(spread, op.Broadcast) else None
    return None if content is None or content.any() else (zeros, operation.move.axis)


def _counted(graph: Graph, value: Value, axis: int) -> Value:
    """What was repeated to be a value, along other axes than ``axis``."""
    while (node := graph.producer(value)) is not None:
        spread = graph.operation(node)
        if not isinstance(spread, op.Broadcast):
            return value
        before, after = graph.sizes(spread.data), graph.sizes(value)
        if before is None or after is None or len(before) != len(after):
            return value
        if not sizes.same(before[axis], after[axis]):
            return value
        value = spread.data
    return value
