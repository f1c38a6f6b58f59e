"""The two ends of a cache: who else reads the input, and which output returns the joined rows."""

from __future__ import annotations

from collections.abc import Iterator

from mla_opt.graphs import operations as op
from mla_opt.graphs.protocol import Graph
from mla_opt.handles import Node, Value
from mla_opt.matching.axes import ApartError, Placement, Variables
from mla_opt.matching.buffers import put_back
from mla_opt.matching.readers import is_idle
from mla_opt.matching.region import Join, is_rearranged, walk
from mla_opt.sites.layout import Layout


def other_readers(graph: Graph, join: Join) -> tuple[Node, ...] | None:
    """The nodes that read rows of the past beside the one that joins them with new ones.

    ``None`` where there are none, and none of those rows is returned.
    """
    steps = zip(join.moved, (*join.moved[1:], join.kept[0]))
    wanted = {value: graph.producer(after) for value, after in steps}
    read = {} if join.written is join.joined else {join.written: graph.producer(join.joined)}
    turned = dict(zip(join.kept, join.kept[1:]))
    between = {value: graph.producer(after) for value, after in turned.items()}
    own = set(_put_back(graph, join))
    others = [
        node
        for value, reader in (wanted | read | between).items()
        for node in graph.consumers(value)
        if node is not reader and node not in own and (value in between or not is_idle(graph, node))
    ]
    if not others and not any(graph.is_output(value) for value in wanted):
        return None
    return tuple(others)


def returned(graph: Graph, join: Join, layout: Layout) -> tuple[Value, Layout] | None:
    """The output that is all that was joined, moved, and what its axes are.

    An axis that is a part has none. ``layout`` is that of what was joined.
    """
    for whole in _wholes(graph, join):
        for value in _rearranged(graph, whole):
            if graph.is_output(value):
                known = _layout(graph, value, whole, layout)
                if known is not None:
                    return value, known
    return None


def _wholes(graph: Graph, join: Join) -> Iterator[Value]:
    """What was joined, with all sequences of a buffer that has more than a call."""
    if join.first is None:
        yield join.written
    for node in _put_back(graph, join):
        yield from graph.results(node)


def _put_back(graph: Graph, join: Join) -> Iterator[Node]:
    if join.first is not None:
        whole = join.moved[join.moved.index(join.first[0]) - 1]
        yield from put_back(graph, whole, join.written)


def _rearranged(graph: Graph, value: Value) -> Iterator[Value]:
    """The value, and everything that it is in another shape, the nearest first."""
    pending = [value]
    while pending:
        current = pending.pop(0)
        yield current
        for node in graph.consumers(current):
            operation = graph.operation(node)
            if isinstance(operation, op.Layout) and operation.data == (current,):
                pending.extend(graph.results(node) if is_rearranged(operation) else ())


def _layout(graph: Graph, output: Value, joined: Value, layout: Layout) -> Layout | None:
    """The axes of an output, read back from it: every variable of it is a part of ``joined``."""
    if output is joined:
        return layout
    shape = graph.sizes(output)
    if shape is None:
        return None
    variables = Variables()
    axes = tuple(variables.new(f"{place}", size) for place, size in enumerate(shape))
    variables.whole.update(variables.sizes)
    try:
        region = walk(graph, variables, {output: axes}, tokens="none", stop_at=(joined,))
    except ApartError:
        return None
    if joined not in region.axes:
        return None
    return _named_by(variables, axes, region.axes[joined], layout)


def _named_by(
    variables: Variables, axes: Placement, of_joined: Placement, layout: Layout
) -> Layout | None:
    """Roles for the axes of an output, from those of the axes that ``joined`` has of it."""
    roles = {
        atoms[0].name: parts
        for axis, parts in zip(of_joined, layout)
        if len(atoms := variables.current(axis)) == 1
    }
    found = []
    for axis in axes:
        atoms = variables.current(axis)
        found.append(roles.get(atoms[0].name, ()) if len(atoms) == 1 else ())
    return tuple(found)
