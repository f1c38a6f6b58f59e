"""What the indices of a buffer are, before they were repeated for heads and numbers of a row.

    cache_position [S] --> unsqueeze, expand [B, H, S, D] --> ScatterElements

Keys and values repeat one index in two shapes; that it is one shows in front of that.
"""

from __future__ import annotations

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Value
from mla_opt.matching.axes import ApartError, Placement, Variables
from mla_opt.matching.axis_rules import Step, operands


def places(graph: Graph, index: Value) -> tuple[Value, tuple[int | None, ...]]:
    """What an index repeats, and which axis of the index each axis of that is.

    ``None`` stands for an axis of size one. Axes of the index that are not among those do not
    matter: the index is the same along them.
    """
    shape = graph.sizes(index) or ()
    variables = Variables()
    axes: Placement = tuple(variables.new(str(place), size) for place, size in enumerate(shape))
    variables.whole.update(variables.sizes)
    found = index, _of_index(variables, axes) or ()
    at: tuple[Value, Placement] | None = (index, axes)
    while at is not None:
        known = _of_index(variables, at[1])
        if known is not None:
            found = at[0], known
        at = _before(graph, variables, *at)
    return found


def _before(
    graph: Graph, variables: Variables, value: Value, axes: Placement
) -> tuple[Value, Placement] | None:
    """What a value is of which it only repeats or reshapes the elements, if it does no more."""
    node = graph.producer(value)
    operation = None if node is None else graph.operation(node)
    if node is None or not isinstance(operation, op.Layout | op.Broadcast):
        return None
    try:
        parts = operands(Step(graph, variables, node, value, axes), operation)
    except ApartError:
        return None
    if parts is None or len(parts) != 1:
        return None
    return parts[0].value, parts[0].axes


def _of_index(variables: Variables, axes: Placement) -> tuple[int | None, ...] | None:
    """Each axis as one whole axis of the index; ``None`` where one of them is something else."""
    found: list[int | None] = []
    for axis in axes:
        atoms = variables.current(axis)
        name = atoms[0].name if len(atoms) == 1 else None
        if atoms and (name is None or not name.isdecimal()):
            return None
        found.append(int(name) if name is not None else None)
    return tuple(found)
