"""The narrowest rows that everything passes through: a minimal vertex cut of a region.

Each value of a region may be cut at the cost of its width, its numbers a token. The cheapest values
that separate the roots from all leaves are the rows to keep: for DeepSeek ``c_kv`` and ``k_pe``.
Among cuts that are equally narrow the one nearest to the roots is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from mla_opt.handles import Value

_INFINITE = 1 << 60

Port = tuple[Value, bool]
"""A value, where it is read (True) or where it is made (False)."""


def narrowest(
    roots: Iterable[Value],
    made_of: Mapping[Value, Sequence[Value]],
    width: Callable[[Value], int | None],
) -> tuple[Value, ...] | None:
    """Return the values of the narrowest cut; ``None`` if a way to a leaf cannot be cut.

    Args:
        roots: what is to be separated from the leaves, the values that are made of nothing.
        made_of: the operands of each inner value.
        width: the cost of a value; ``None`` where it cannot be cut.
    """
    network = _Network(made_of, width)
    starts = [(root, True) for root in dict.fromkeys(roots)]
    while (path := network.path(starts)) is not None:
        amount = min(network.left[edge] for edge in path)
        if amount >= _INFINITE:
            return None
        network.push(path, amount)
    reached = network.reached(starts)
    return tuple(value for value, read in reached if read and (value, False) not in reached)


class _Network:
    """What still fits through every edge: from a value's reading side to its making side."""

    def __init__(
        self, made_of: Mapping[Value, Sequence[Value]], width: Callable[[Value], int | None]
    ) -> None:
        self.left: dict[tuple[Port, Port], int] = {}
        self.next: dict[Port, list[Port]] = {}
        self.leaves: set[Port] = set()
        values = dict.fromkeys((*made_of, *(each for parts in made_of.values() for each in parts)))
        for value in values:
            cost = width(value)
            self._edge((value, True), (value, False), _INFINITE if cost is None else cost)
            for part in made_of.get(value, ()):
                self._edge((value, False), (part, True), _INFINITE)
            if value not in made_of:
                self.leaves.add((value, False))

    def _edge(self, start: Port, end: Port, room: int) -> None:
        self.left[start, end] = self.left.get((start, end), 0) + room
        self.left.setdefault((end, start), 0)
        self.next.setdefault(start, []).append(end)
        self.next.setdefault(end, []).append(start)

    def reached(self, starts: Sequence[Port]) -> dict[Port, Port | None]:
        """Every port that something still gets to, and where from."""
        came: dict[Port, Port | None] = dict.fromkeys(starts)
        pending = deque(starts)
        while pending:
            port = pending.popleft()
            for other in self.next.get(port, ()):
                if other not in came and self.left[port, other] > 0:
                    came[other] = port
                    pending.append(other)
        return came

    def path(self, starts: Sequence[Port]) -> list[tuple[Port, Port]] | None:
        """A way to a leaf on which there is room."""
        came = self.reached(starts)
        end = next((leaf for leaf in self.leaves if leaf in came), None)
        if end is None:
            return None
        edges: list[tuple[Port, Port]] = []
        port: Port = end
        while (before := came[port]) is not None:
            edges.append((before, port))
            port = before
        return edges[::-1]

    def push(self, path: Sequence[tuple[Port, Port]], amount: int) -> None:
        """Use up room along a path."""
        for start, end in path:
            self.left[start, end] -= amount
            self.left[end, start] += amount
