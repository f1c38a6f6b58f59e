"""Sizes as an ONNX file tells them: a number, a symbol, or an axis of a value."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from mla_opt.handles import Array

Size = int | str | tuple[ir.Value, int] | None
"""A number, a symbol, an axis of a value, or nothing known. Nothing known equals nothing."""

_MOVES = ("Unsqueeze", "Squeeze", "Identity")


class SizeFacts(Protocol):
    """What has to be known of values to tell the sizes that they hold."""

    def small_constant(self, value: ir.Value) -> Array | None:
        """Content of a stored tensor that is small enough to be read while matching."""

    def rank(self, value: ir.Value) -> int | None:
        """Number of axes; ``None`` where it cannot be told."""


def sizes_of(value: ir.Value, rank: int) -> tuple[Size, ...]:
    """The sizes that the file declares of a value; where it declares none, the axes themselves."""
    if value.shape is None or len(value.shape) != rank:
        return tuple((value, axis) for axis in range(rank))
    return tuple(_declared(value, axis) for axis in range(rank))


def _declared(value: ir.Value, axis: int) -> Size:
    assert value.shape is not None
    size = value.shape[axis]
    if isinstance(size, int):
        return size
    return size.value if size.value else (value, axis)


def sizes_held(facts: SizeFacts, shape: ir.Value) -> tuple[Size, ...] | None:
    """The sizes that an integer tensor holds, as far as they were stored or read off values."""
    stored = facts.small_constant(shape)
    if stored is not None:
        return tuple(int(number) for number in stored.reshape(-1))
    node = shape.producer()
    if node is None or node.domain:
        return None
    if node.op_type in _MOVES and node.inputs[0] is not None:
        return sizes_held(facts, node.inputs[0])
    if node.op_type == "Shape":
        return _sizes_read(facts, node)
    if node.op_type == "Gather":
        return _sizes_gathered(facts, node)
    if node.op_type == "Concat":
        return _sizes_joined(facts, node)
    return None


def _sizes_read(facts: SizeFacts, node: ir.Node) -> tuple[Size, ...] | None:
    value = node.inputs[0]
    rank = None if value is None else facts.rank(value)
    if value is None or rank is None:
        return None
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    places = slice(start.as_int() if start else None, end.as_int() if end else None)
    return sizes_of(value, rank)[places]


def _sizes_gathered(facts: SizeFacts, node: ir.Node) -> tuple[Size, ...] | None:
    whole, index = node.inputs[0], node.inputs[1]
    held = None if whole is None else sizes_held(facts, whole)
    places = None if index is None else facts.small_constant(index)
    if held is None or places is None:
        return None
    chosen = [int(place) for place in places.reshape(-1)]
    return tuple(held[place] for place in chosen) if _within(chosen, len(held)) else None


def _within(places: list[int], count: int) -> bool:
    return all(-count <= place < count for place in places)


def _sizes_joined(facts: SizeFacts, node: ir.Node) -> tuple[Size, ...] | None:
    parts = [None if each is None else sizes_held(facts, each) for each in node.inputs]
    known = [part for part in parts if part is not None]
    return tuple(size for part in known for size in part) if len(known) == len(parts) else None
