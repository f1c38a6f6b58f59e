"""What keys and values are made of, walked back with the axes of everything on the way.

The walk begins at values whose axes are known and goes back through every operation that has a rule
(:mod:`mla_opt.matching.axis_rules`). What is left are leaves: values that rows may begin at. Each
is made of, sequence by sequence and token by token, what its axes say; that holds at every size.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Axis, Placement, Variables, merge
from mla_opt.matching.axis_rules import Operand, Step, operands
from mla_opt.matching.buffers import RowsRead, first_of, room_behind, rows_read


@dataclass(frozen=True, slots=True)
class Join:
    """Rows of the past, an input of the graph, and new ones, put together along the tokens.

    ``past_axes`` are those of the input, which may be moved on its way: ``moved`` is what it is on
    that way, the input first. With ``put`` new rows are written over rows of the past, and over
    rows of zeros behind them where there is ``room``: a value, and which axis of it counts them.
    ``joined`` is then the first ``count`` rows of what is ``written``, or all of them: ``kept`` is
    what that is on its way from where new rows are put in, ``written`` the last. ``order`` says
    which axis of the new rows each axis of ``joined`` is, where they are not the same. Where only
    the first sequences of the past are written, ``first`` is what of the way that is, and their
    axis there.
    """

    past: Value
    new: Value
    joined: Value
    kept: tuple[Value, ...]
    past_axes: Placement
    moved: tuple[Value, ...]
    put: op.Put | None = None
    count: Value | None = None
    first: tuple[Value, Axis] | None = None
    room: tuple[Value, int] | None = None
    order: tuple[int, ...] = ()

    @property
    def written(self) -> Value:
        """All rows that the past and new ones are, of the axes of ``joined``."""
        return self.kept[-1]


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where a walk ended, and why: at an input, at an operation without a rule, or at one that
    does to tokens what cannot be followed."""

    kind: Literal["input", "opaque", "apart", "asked"]
    why: str = ""


@dataclass(slots=True)
class Region:
    """Everything between some values and their leaves.

    Attributes:
        axes: of every value of the region, leaves included.
        made_of: the operands that each inner value is made of.
        leaves: where the walk ended, and why there.
        joins: caches on the way.
    """

    axes: dict[Value, Placement] = field(default_factory=dict)
    made_of: dict[Value, tuple[Value, ...]] = field(default_factory=dict)
    leaves: dict[Value, Leaf] = field(default_factory=dict)
    joins: list[Join] = field(default_factory=list)


def walk(
    graph: Graph,
    variables: Variables,
    roots: Mapping[Value, Placement],
    *,
    tokens: str,
    stop_at: Collection[Value] = (),
) -> Region:
    """Walk back from ``roots``, last node first, and no further than ``stop_at``.

    ``tokens`` is the variable of the tokens that the roots hold.

    Raises:
        ApartError: one value is read in two ways that cannot both be.
    """
    found = _Walk(graph, variables, tokens, frozenset(stop_at))
    for value, axes in roots.items():
        found.add(value, axes)
    while found.pending:
        found.step()
    return found.region


@dataclass(frozen=True, slots=True)
class _Way:
    """What an input is on its way to where it is joined, and the axes of the first of it.

    ``first`` is the value that has only the first places of one axis, and that axis; ``room`` zeros
    that are put behind its tokens, and which axis of them counts those.
    """

    moved: tuple[Value, ...]
    axes: Placement
    first: tuple[Value, Axis] | None = None
    room: tuple[Value, int] | None = None


@dataclass(slots=True)
class _Walk:
    graph: Graph
    variables: Variables
    tokens: str
    stop_at: frozenset[Value]
    region: Region = field(default_factory=Region)
    pending: list[tuple[int, int, Value]] = field(default_factory=list)

    def add(self, value: Value, axes: Placement) -> None:
        """Take in a value that is read with these axes, as well as with those known already."""
        known = self.region.axes.get(value)
        if known is not None:
            axes = merge(self.variables, known, axes)
        else:
            node = self.graph.producer(value)
            place = -1 if node is None else self.graph.position(node)
            heapq.heappush(self.pending, (-place, len(self.region.axes), value))
        self.region.axes[value] = axes

    def step(self) -> None:
        """Go back through what makes the last value of the region."""
        _, _, value = heapq.heappop(self.pending)
        node = self.graph.producer(value)
        if node is None or value in self.stop_at:
            name = f"{value.name} is an input"
            self.region.leaves[value] = Leaf("input", name) if node is None else Leaf("asked")
            return
        try:
            parts = self._parts(node, value)
        except ApartError as error:
            self.region.leaves[value] = Leaf("apart", f"{self.graph.label(node)}: {error}")
            return
        if parts is None:
            why = f"{self.graph.label(node)} is not linear in what it reads"
            self.region.leaves[value] = Leaf("opaque", why)
            return
        self.region.made_of[value] = tuple(part.value for part in parts)
        for part in parts:
            self.add(part.value, part.axes)

    def _parts(self, node: Node, value: Value) -> list[Operand] | None:
        joined = self._join(value)
        if joined is not None:
            return [joined]
        operation = self.graph.operation(node)
        step = Step(self.graph, self.variables, node, value, self.region.axes[value])
        parts = operands(step, operation)
        if parts is None:
            return None
        return [part for part in parts if not self.graph.is_constant(part.value)]

    def _join(self, value: Value) -> Operand | None:
        """The new rows, where a cache is joined: what is known of tokens goes on with those."""
        read = rows_read(self.graph, value)
        if read is None or self.graph.is_input(read.new):
            return None
        axes = _turned_back(self.region.axes[value], read.order)
        if not self._is_tokens(axes[read.axis]):
            return None
        of_past: Placement | None = axes
        if read.put is None or read.count is not None:
            of_past = self._of_part(read.past, axes, read.axis, past_tokens(self.tokens))
        way = None if of_past is None else self._input_moved(read, of_past)
        of_new = self._of_part(read.new, axes, read.axis, new_tokens(self.tokens))
        if way is None or of_new is None:
            return None
        self.region.joins.append(
            Join(
                way.moved[0],
                read.new,
                value,
                read.kept,
                way.axes,
                way.moved,
                read.put,
                read.count,
                way.first,
                way.room,
                read.order,
            )
        )
        return Operand(read.new, of_new)

    def _of_part(self, part: Value, axes: Placement, axis: int, tokens: str) -> Placement | None:
        """The axes of rows that are joined with others; ``tokens`` is the variable of theirs."""
        shape = self.graph.sizes(part)
        if shape is None or len(shape) != len(axes):  # PyTorch joins what is empty at any rank
            return None
        of_part = list(axes)
        of_part[axis] = self.variables.new(tokens, shape[axis])
        self.variables.whole.add(tokens)
        return tuple(of_part)

    def _input_moved(self, read: RowsRead, axes: Placement) -> _Way | None:
        """The input that the past is, on its way through what keeps all elements in their order.

        Of a buffer zeros may be told that are put behind its tokens, and sequences left out.
        """
        way = _Way((read.past,), axes)
        while (node := self.graph.producer(way.moved[0])) is not None:
            operation = self.graph.operation(node)
            if not isinstance(operation, op.Layout):
                return None
            before = self._rearranged(node, operation, way)
            if before is None and read.put is not None:
                before = self._of_buffer(operation, way)
            if before is None:
                return None
            way = before
        return way if self.graph.is_input(way.moved[0]) else None

    def _rearranged(self, node: Node, operation: op.Layout, way: _Way) -> _Way | None:
        """The way with what its first value is a rearrangement of."""
        if not is_rearranged(operation):
            return None
        step = Step(self.graph, self.variables, node, way.moved[0], way.axes)
        try:
            parts = operands(step, operation)
        except ApartError:
            return None
        if parts is None or len(parts) != 1:
            return None
        return replace(way, moved=(parts[0].value, *way.moved), axes=parts[0].axes)

    def _of_buffer(self, operation: op.Layout, way: _Way) -> _Way | None:
        """The way with a buffer that has fewer rows, or more sequences, than what is made of it."""
        if way.room is None and (room := room_behind(self.graph, operation)) is not None:
            return self._shortened(operation.data[0], room, way)
        return self._widened(operation, way) if way.first is None else None

    def _shortened(self, buffer: Value, room: tuple[Value, int], way: _Way) -> _Way | None:
        """The way with what zeros were put behind of, along its tokens."""
        if not self._is_tokens(way.axes[room[1]]):
            return None
        axes = self._of_part(buffer, way.axes, room[1], past_tokens(self.tokens))
        if axes is None:
            return None
        return replace(way, moved=(buffer, *way.moved), axes=axes, room=room)

    def _widened(self, operation: op.Layout, way: _Way) -> _Way | None:
        """The way with what its first value has the first places of, along one whole axis."""
        place, shape = first_of(operation), self.graph.sizes(operation.data[0])
        if place is None or shape is None:
            return None
        axis = self.variables.current(way.axes[place])
        if len(axis) != 1 or axis[0].name is None or self._is_tokens(axis):
            return None
        wide = (*way.axes[:place], (replace(axis[0], size=shape[place]),), *way.axes[place + 1 :])
        first = (way.moved[0], axis)
        return replace(way, moved=(operation.data[0], *way.moved), axes=wide, first=first)

    def _is_tokens(self, axis: Axis) -> bool:
        return tuple(atom.name for atom in self.variables.current(axis)) == self.variables.names(
            self.tokens
        )


def _turned_back(axes: Placement, order: tuple[int, ...]) -> Placement:
    """The axes of a value, by those of another order of them."""
    if not order:
        return axes
    back: list[Axis] = [()] * len(order)
    for axis, place in zip(axes, order):
        back[place] = axis
    return tuple(back)


def is_rearranged(operation: op.Layout) -> bool:
    """Whether the elements are all there, in one order for all axes: another shape, or turned."""
    return isinstance(operation.move, op.Permuted | op.Reshaped) or operation.move == op.Along(())


def past_tokens(tokens: str) -> str:
    """The variable of the tokens that a cache brings, by that of all tokens."""
    return f"{tokens}-"


def new_tokens(tokens: str) -> str:
    """The variable of the tokens that a call adds, by that of all tokens."""
    return f"{tokens}+"
