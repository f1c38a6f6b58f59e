"""What keys and values are made of, walked back with the axes of everything on the way.

The walk begins at values whose axes are known and goes back through every operation that has a rule
(:mod:`mla_opt.matching.axis_rules`). What is left are leaves: values that rows may begin at. Each
is made of, sequence by sequence and token by token, what its axes say; that holds at every size.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Axis, Placement, Variables, merge
from mla_opt.matching.axis_rules import Operand, Step, operands


@dataclass(frozen=True, slots=True)
class Join:
    """Rows of the past, an input of the graph, and new ones, put together along the tokens.

    ``past_axes`` are those of the input, which may be moved on its way: ``moved`` is what it is on
    that way, the input first. With ``put`` new rows are written over rows of the past, and over
    rows of zeros behind them where there is ``room``: a value, and which axis of it counts them.
    """

    past: Value
    new: Value
    joined: Value
    past_axes: Placement
    moved: tuple[Value, ...]
    put: op.Put | None = None
    room: tuple[Value, int] | None = None


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
        operation = self.graph.operation(node)
        joined = self._join(operation, value)
        if joined is not None:
            return [joined]
        step = Step(self.graph, self.variables, node, value, self.region.axes[value])
        parts = operands(step, operation)
        if parts is None:
            return None
        return [part for part in parts if not self.graph.is_constant(part.value)]

    def _join(self, operation: op.Operation, value: Value) -> Operand | None:
        """The new rows, where a cache is joined: what is known of tokens goes on with those."""
        if not isinstance(operation, op.Layout) or len(operation.data) != 2:
            return None
        past, new = operation.data
        move, axes = operation.move, self.region.axes[value]
        if not isinstance(move, op.Joined | op.Put):
            return None
        axis, put = move.axis, move if isinstance(move, op.Put) else None
        if self.graph.is_input(new) or not self._is_tokens(axes[axis]):
            return None
        of_past: Placement | None = axes
        if put is None:
            of_past = self._of_part(past, axes, axis, past_tokens(self.tokens))
        inputs = None if of_past is None else self._input_moved(past, of_past, put is not None)
        of_new = self._of_part(new, axes, axis, new_tokens(self.tokens))
        if inputs is None or of_new is None:
            return None
        moved, past_axes, room = inputs
        self.region.joins.append(Join(moved[0], new, value, past_axes, moved, put, room))
        return Operand(new, of_new)

    def _of_part(self, part: Value, axes: Placement, axis: int, tokens: str) -> Placement | None:
        """The axes of rows that are joined with others; ``tokens`` is the variable of theirs."""
        shape = self.graph.sizes(part)
        if shape is None or len(shape) != len(axes):  # PyTorch joins what is empty at any rank
            return None
        of_part = list(axes)
        of_part[axis] = self.variables.new(tokens, shape[axis])
        self.variables.whole.add(tokens)
        return tuple(of_part)

    def _input_moved(
        self, value: Value, axes: Placement, roomy: bool
    ) -> tuple[tuple[Value, ...], Placement, tuple[Value, int] | None] | None:
        """The input that a value is, on its way through what keeps all elements in their order.

        If it may be ``roomy``, zeros are told from it that are put behind its tokens.
        """
        chain, room = [value], None
        while (node := self.graph.producer(value)) is not None:
            operation = self.graph.operation(node)
            if not isinstance(operation, op.Layout):
                return None
            if roomy and room is None and (found := self._room(operation, axes)) is not None:
                room, value = found, operation.data[0]
                before = self._of_part(value, axes, found[1], past_tokens(self.tokens))
                if before is None:
                    return None
                axes = before
                chain.append(value)
                continue
            if not is_rearranged(operation):
                return None
            try:
                parts = operands(Step(self.graph, self.variables, node, value, axes), operation)
            except ApartError:
                return None
            if parts is None or len(parts) != 1:
                return None
            value, axes = parts[0].value, parts[0].axes
            chain.append(value)
        return (tuple(reversed(chain)), axes, room) if self.graph.is_input(value) else None

    def _room(self, operation: op.Layout, axes: Placement) -> tuple[Value, int] | None:
        """Zeros that are joined to something at the end of its tokens, and along which axis."""
        move = operation.move
        if not isinstance(move, op.Joined) or len(operation.data) != 2:
            return None
        zeros = self._counted(operation.data[1], move.axis)
        node = self.graph.producer(zeros)
        spread = None if node is None else self.graph.operation(node)
        content = self.graph.constant(spread.data) if isinstance(spread, op.Broadcast) else None
        if content is None or content.any() or not self._is_tokens(axes[move.axis]):
            return None
        return zeros, move.axis

    def _counted(self, value: Value, axis: int) -> Value:
        """What was repeated to be a value, along other axes than ``axis``."""
        while (node := self.graph.producer(value)) is not None:
            spread = self.graph.operation(node)
            if not isinstance(spread, op.Broadcast):
                return value
            before, after = self.graph.sizes(spread.data), self.graph.sizes(value)
            if before is None or after is None or len(before) != len(after):
                return value
            if not sizes.same(before[axis], after[axis]):
                return value
            value = spread.data
        return value

    def _is_tokens(self, axis: Axis) -> bool:
        return tuple(atom.name for atom in self.variables.current(axis)) == self.variables.names(
            self.tokens
        )


def is_rearranged(operation: op.Layout) -> bool:
    """Whether the elements are all there, in one order for all axes: another shape, or turned."""
    return isinstance(operation.move, op.Permuted | op.Reshaped) or operation.move == op.Along(())


def past_tokens(tokens: str) -> str:
    """The variable of the tokens that a cache brings, by that of all tokens."""
    return f"{tokens}-"


def new_tokens(tokens: str) -> str:
    """The variable of the tokens that a call adds, by that of all tokens."""
    return f"{tokens}+"
