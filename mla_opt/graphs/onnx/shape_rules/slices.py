"""Shapes of slices: how many elements lie between two places."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.shape_rules.facts import (
    Facts,
    Shape,
    axis_of,
    numbers_at,
    operand,
    shape_at,
)
from mla_opt.graphs.sizes import Expression

_WHOLE = 1 << 30
"""Slice bounds this large mean: to the end."""


def of_slice(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """``Slice``: each axis by what lies between start and end."""
    shape = shape_at(facts, node, 0)
    if shape is None:
        return ()
    spans = spans_of(facts, node)
    if spans is None:
        return (tuple(facts.unknown() for _ in shape),)
    result = list(shape)
    for axis, (start, stop, step) in spans.items():
        result[axis] = _span(facts, shape[axis], start, stop, step)
    return (tuple(result),)


def spans_of(
    facts: Facts, node: ir.Node
) -> dict[int, tuple[Expression | None, Expression | None, Expression | None]] | None:
    """Start, stop and step of a Slice by axis, ``None`` where unknown; ``None``: axes unknown."""
    shape = shape_at(facts, node, 0)
    starts = shape_at(facts, node, 1)
    count = (
        len(node.attributes["starts"].value)
        if "starts" in node.attributes
        else (starts[0] if starts else None)
    )
    if shape is None or not isinstance(count, int):
        return None
    axes = numbers_at(facts, node, 3, "axes")
    if axes is None:
        given = operand(node, 3) is not None
        axes = None if given else list(range(count))
    if axes is None or not all(isinstance(axis, int) for axis in axes):
        return None
    unknown: list[Expression | None] = [None] * count
    start = numbers_at(facts, node, 1, "starts") or unknown
    stop = numbers_at(facts, node, 2, "ends") or unknown
    step = numbers_at(facts, node, 4) or unknown
    if operand(node, 4) is None:
        step = [1] * count
    places = [axis_of(axis, len(shape)) for axis in axes]
    if None in places or not len(places) == len(start) == len(stop) == len(step):
        return None
    return {place: bounds for place, *bounds in zip(places, start, stop, step) if place is not None}  # type: ignore[misc]


def _span(
    facts: Facts,
    size: Expression,
    start: Expression | None,
    stop: Expression | None,
    step: Expression | None,
) -> Expression:
    if isinstance(size, int) and all(isinstance(each, int) for each in (start, stop, step)):
        return len(range(size)[slice(start, _python_stop(stop, step), step)])
    if step != 1 or start is None or stop is None:
        return facts.unknown()
    if start == 0:
        return _from_front(facts, size, stop)
    return _from_within(facts, size, start, stop)


def _python_stop(stop: Expression | None, step: Expression | None) -> Expression | None:
    """A stop far below zero, backwards, means: to the front."""
    backwards = isinstance(step, int) and step < 0
    return None if backwards and isinstance(stop, int) and stop < -_WHOLE else stop


def _from_front(facts: Facts, size: Expression, stop: Expression) -> Expression:
    if isinstance(stop, int):
        if stop >= _WHOLE:
            return size
        return _from_back(facts, size, stop) if stop < 0 else sizes.smaller(size, stop)
    if sizes.same(size, stop):
        return size
    rest = sizes.difference(size, stop)
    if getattr(rest, "is_nonnegative", None) and getattr(stop, "is_nonnegative", None):
        return stop
    return sizes.smaller(size, stop) if getattr(stop, "is_nonnegative", None) else facts.unknown()


def _from_back(facts: Facts, size: Expression, stop: int) -> Expression:
    """All but the last few places, of an axis that has so many."""
    rest = sizes.plain(size + stop)
    if isinstance(rest, int):
        return max(rest, 0)
    return rest if rest.is_nonnegative else facts.unknown()


def _from_within(facts: Facts, size: Expression, start: Expression, stop: Expression) -> Expression:
    """From the start of new rows, say, to the end: exact where both lie within the axis."""
    whole = (isinstance(stop, int) and stop >= _WHOLE) or sizes.same(stop, size)
    if not whole:
        return facts.unknown()
    rest = sizes.difference(size, start)
    behind = start >= 0 if isinstance(start, int) else start.is_nonnegative
    inside = behind and (rest >= 0 if isinstance(rest, int) else rest.is_nonnegative)
    return rest if inside else facts.unknown()
