"""Where the sequences, heads, tokens and width of a value are among its axes.

A layout has an entry for each axis: its parts, slow ones first. ``[B, S, H D]`` is

    ((batch,), (query,), (head 16, width 192))

Axes of size one have no parts. A *standard* form has one axis for each of some roles, in their
order, and the width last; a role that a value does not have is an axis of size one there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mla_opt.handles import Array

Role = Literal["batch", "head", "query", "key", "width"]


@dataclass(frozen=True, slots=True)
class Part:
    """Part of an axis: what it counts, and how many if that is a number.

    Heads may come in several parts, consecutive numbers of which make up a head's: ``number``.
    """

    role: Role
    size: int | None
    number: int = 0


Layout = tuple[tuple[Part, ...], ...]

QUERY: tuple[Role, ...] = ("batch", "head", "query")
KEYS: tuple[Role, ...] = ("batch", "head", "key")
SCORES: tuple[Role, ...] = ("batch", "head", "query", "key")


def parts_of(layout: Layout) -> tuple[Part, ...]:
    """All parts, in the order of the elements."""
    return tuple(part for axis in layout for part in axis)


def order_of(layout: Layout, roles: Sequence[Role]) -> list[int]:
    """Places of the parts, those of ``roles`` first and in their order, then the width's."""
    parts = parts_of(layout)
    ranks = {role: rank for rank, role in enumerate((*roles, "width"))}
    return sorted(range(len(parts)), key=lambda at: (ranks[parts[at].role], parts[at].number, at))


def is_standard(layout: Layout, roles: Sequence[Role]) -> bool:
    """Whether the axes are one for each role, in order, then the width."""
    wanted = (*roles, "width")
    return len(layout) == len(wanted) and all(
        len(axis) <= 1 and all(part.role == role for part in axis)
        for axis, role in zip(layout, wanted)
    )


def to_standard(array: Array, layout: Layout, roles: Sequence[Role]) -> Array:
    """An array as one axis for each of ``roles`` and one for the width."""
    parts = parts_of(layout)
    spread = array.reshape(_spread(array.shape, layout))
    turned = spread.transpose(order_of(layout, roles))
    sizes = {role: 1 for role in (*roles, "width")}
    for part, size in zip(parts, spread.shape):
        sizes[part.role] *= size
    return turned.reshape([sizes[role] for role in (*roles, "width")])


def from_standard(array: Array, layout: Layout, roles: Sequence[Role], shape: Sequence[int]) -> Array:
    """An array of one axis a role as it lies in a value of this layout and shape."""
    spread = _spread(shape, layout)
    order = order_of(layout, roles)
    turned = array.reshape([spread[place] for place in order])
    return turned.transpose(np.argsort(order)).reshape(shape)


def _spread(shape: Sequence[int], layout: Layout) -> list[int]:
    """The size of every part, in the order of the elements."""
    sizes: list[int] = []
    for total, axis in zip(shape, layout):
        fixed = int(np.prod([part.size for part in axis if part.size is not None], dtype=np.int64))
        sizes.extend(total // fixed if part.size is None else part.size for part in axis)
    return sizes
