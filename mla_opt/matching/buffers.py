"""Rows of the past and new ones, as they are read together.

    grown      concat(past, new)
    buffer     put(past, new)
    its front  slice(put(past, new), 0, end), turned or not before it is sliced

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

    ``count`` is ``None`` where all rows are read, ``put`` where they grow. ``axis`` is one of the
    past's and the new rows'; ``order`` says which axis of those each axis of what is read is.
    ``kept`` is everything from where new rows are put in to ``written``, which is the same, turned.
    """

    past: Value
    new: Value
    axis: int
    kept: tuple[Value, ...]
    put: op.Put | None = None
    count: Value | None = None
    order: tuple[int, ...] = ()

    @property
    def written(self) -> Value:
        """All rows, with the axes of what is read."""
        return self.kept[-1]


def rows_read(graph: Graph, value: Value) -> RowsRead | None:
    """The rows that a value is, where past and new ones are put together."""
    node = graph.producer(value)
    operation = None if node is None else graph.operation(node)
    if not isinstance(operation, op.Layout):
        return None
    match operation.move, operation.data:
        case op.Joined(axis), (past, new):
            return RowsRead(past, new, axis, (value,))
        case op.Put(axis) as put, (past, new):
            return RowsRead(past, new, axis, (value,), put)
        case op.Along(((axis, True),), count), (whole,):
            if count is None or isinstance(count, int):
                return None
            return _front_of(graph, whole, axis, count)
    return None


def _front_of(graph: Graph, whole: Value, axis: int, count: Value) -> RowsRead | None:
    """The first rows of a buffer, along an axis of it that has been turned to where it is."""
    kept, order = _turned(graph, whole)
    read = rows_read(graph, kept[0])
    if read is None or read.put is None or read.count is not None:
        return None
    if read.axis != (order[axis] if order else axis):
        return None
    return replace(read, kept=kept, count=count, order=order)


def _turned(graph: Graph, value: Value) -> tuple[tuple[Value, ...], tuple[int, ...]]:
    """What a value is another order of axes of, up to it; and which axis of that each of it is."""
    kept: list[Value] = [value]
    order: tuple[int, ...] = ()
    while (node := graph.producer(kept[0])) is not None:
        operation = graph.operation(node)
        if not isinstance(operation, op.Layout) or not isinstance(operation.move, op.Permuted):
            break
        before = operation.move.order
        order = tuple(before[axis] for axis in order) if order else before
        kept.insert(0, operation.data[0])
    return tuple(kept), order


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
