"""Inputs and outputs of caches that become rows ``[B, 1, T, X]``, and who counted theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mla_opt.graphs.protocol import Builder, Graph, Size
from mla_opt.handles import Value
from mla_opt.sites import CachedTensor, CacheSlots
from mla_opt.sites.layout import Layout, Role


def rows_input(graph: Graph, part: CachedTensor, name: str, width: int) -> Value:
    """The input ``[B, 1, P, width]`` in the place of one of any axes."""
    shape = _declared(graph.declared_shape(part.past), part.past_layout, width)
    return graph.replace_input(part.past, name, shape, moved=moved_axes(part.past_layout))


def _declared(
    declared: Sequence[int | str | None], layout: Layout, width: int
) -> tuple[int | str | None, ...]:
    """``[B, 1, T, width]`` in the words of what was declared of other axes."""
    counted = {axis[0].role: size for axis, size in zip(layout, declared) if len(axis) == 1}
    return counted.get("batch", 1), 1, counted.get("key"), width


def moved_axes(layout: Layout) -> dict[int, int]:
    """Which axis of ``[B, 1, T, X]`` counts what an axis of another layout did."""
    counted: dict[Role, int] = {"batch": 0, "key": 2}
    return {
        place: counted[axis[0].role]
        for place, axis in enumerate(layout)
        if axis and axis[0].role in counted
    }


def declared_output(
    graph: Graph, part: CachedTensor, width: int
) -> tuple[int | str | None, ...] | None:
    """``[B, 1, T, width]`` in the words of the output that was; ``None`` if it declares nothing."""
    declared = graph.declared_shape(part.output)
    return _declared(declared, part.output_layout, width) if declared else None


def redirect_readers(graph: Graph, builder: Builder, part: CachedTensor, cache: CacheSlots) -> None:
    """Let those who read the shape of joined rows count past and new rows.

    What joins them will be the operator, which may read a mask that is made from that shape.
    """
    past, new, positions = cache.past[0], cache.new[0], cache.positions
    batch: Size = ((new if positions is not None and positions.first else past, 0),)
    added: tuple[tuple[Value, int], ...] = ((new, 2),)
    if positions is not None:
        added = () if positions.room is None else (positions.room,)
    rows: Size = ((past, 2), *added)
    read = rows if positions is None or positions.count is None else ((cache.joined[0], 2),)
    for value, count in {part.written: rows, part.joined: read}.items():
        _redirect(graph, value, part.layout, {"batch": batch, "key": count})


def _redirect(graph: Graph, value: Value, layout: Layout, counted: Mapping[Role, Size]) -> None:
    shape, readers = graph.example_shape(value), graph.shape_readers(value)
    if not readers or shape is None:
        return
    sizes: list[Size] = [
        counted[axis[0].role] if axis and axis[0].role in counted else size
        for axis, size in zip(layout, shape)
    ]
    for reader in readers:
        graph.replace_shape(reader, sizes)
