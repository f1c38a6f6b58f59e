"""Where the sequences, heads, tokens and width of a value are among its axes.

A layout has an entry for each axis: its parts, slow ones first. ``[B, S, H D]`` is

    ((batch,), (query,), (head 16, width 192))

Axes of size one have no parts. A *standard* form has one axis for each of some roles, in their
order; a role that a value does not have is an axis of size one there.
"""

from __future__ import annotations

import math
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

QUERY: tuple[Role, ...] = ("batch", "head", "query", "width")
KEYS: tuple[Role, ...] = ("batch", "head", "key", "width")
ROWS: tuple[Role, ...] = ("batch", "key", "width")
HIDDEN: tuple[Role, ...] = ("batch", "query", "width")
SCORES: tuple[Role, ...] = ("batch", "head", "query", "key")


def parts_of(layout: Layout) -> tuple[Part, ...]:
    """All parts, in the order of the elements."""
    return tuple(part for axis in layout for part in axis)


def order_of(layout: Layout, roles: Sequence[Role]) -> list[int]:
    """Places of the parts, those of the first of ``roles`` first."""
    parts = parts_of(layout)
    return sorted(
        range(len(parts)), key=lambda at: (roles.index(parts[at].role), parts[at].number, at)
    )


def is_standard(layout: Layout, roles: Sequence[Role]) -> bool:
    """Whether the axes are one for each role, in order."""
    return len(layout) == len(roles) and all(
        all(part.role == role for part in axis)
        and [part.number for part in axis] == sorted(part.number for part in axis)
        for axis, role in zip(layout, roles)
    )


def heads_of(layout: Layout) -> tuple[Part, ...]:
    """The parts that a head's number is made of, the slow one first."""
    heads = [part for part in parts_of(layout) if part.role == "head"]
    return tuple(sorted(heads, key=lambda part: part.number))


def head_count(layout: Layout) -> int:
    """How many heads there are."""
    return math.prod(part.size or 1 for part in heads_of(layout))


def to_standard(
    array: Array, layout: Layout, roles: Sequence[Role], heads: Sequence[Part] = ()
) -> Array:
    """An array as one axis for each of ``roles``.

    With ``heads`` those that the array does not tell apart are repeated.
    """
    parts = parts_of(layout)
    spread = array.reshape(_spread(array.shape, layout))
    order = order_of(layout, roles)
    turned = spread.transpose(order)
    sizes = dict.fromkeys(roles, 1)
    for place in order:
        sizes[parts[place].role] *= spread.shape[place]
    if heads and "head" in sizes:
        turned = _with_heads(turned, [parts[place] for place in order], roles, heads)
        sizes["head"] = math.prod(part.size or 1 for part in heads)
    return turned.reshape([sizes[role] for role in roles])


def _with_heads(
    turned: Array, parts: Sequence[Part], roles: Sequence[Role], heads: Sequence[Part]
) -> Array:
    """The array, whose axes are ``parts``, with an axis for each of ``heads``."""
    rank = roles.index("head")
    before = sum(roles.index(part.role) < rank for part in parts)
    own = {part.number: part.size or 1 for part in parts if part.role == "head"}
    front, back = turned.shape[:before], turned.shape[before + len(own) :]
    apart = turned.reshape((*front, *(own.get(part.number, 1) for part in heads), *back))
    return np.broadcast_to(apart, (*front, *(part.size or 1 for part in heads), *back))


def from_standard(
    array: Array, layout: Layout, roles: Sequence[Role], shape: Sequence[int]
) -> Array:
    """An array of one axis a role as it lies in a value of this layout and shape."""
    spread = _spread(shape, layout)
    order = order_of(layout, roles)
    turned = array.reshape([spread[place] for place in order])
    return turned.transpose(np.argsort(order)).reshape(shape)


def _spread(shape: Sequence[int], layout: Layout) -> list[int]:
    """The size of every part, in the order of the elements."""
    sizes: list[int] = []
    for total, axis in zip(shape, layout):
        fixed = math.prod(part.size for part in axis if part.size is not None)
        sizes.extend(total // fixed if part.size is None else part.size for part in axis)
    return sizes
