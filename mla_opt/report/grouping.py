"""Identical layers told once: ``layers 0-26 (27 sites)`` instead of 27 lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_NUMBER = re.compile(r"\d+")
_LAYER = re.compile(r"layers?\W*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Group(Generic[T]):
    """Things alike in everything that is shown; ``label`` names them all."""

    label: str
    members: tuple[T, ...]


def group(
    items: Iterable[T], *, key: Callable[[T], Hashable], name: Callable[[T], str]
) -> tuple[Group[T], ...]:
    """Group ``items`` that have the same ``key``, in the order in which each key first appears."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return tuple(Group(label([name(m) for m in ms]), tuple(ms)) for ms in groups.values())


def label(names: Sequence[str]) -> str:
    """Name many attentions in one short phrase.

    One name stays as it is. Names that differ in one number only become that number's ranges:
    ``model.layers.{0,1,2}.attn`` gives ``layers 0-2 (3 sites)``. Others give the first and last.
    """
    if len(names) == 1:
        return names[0]
    count = f"({len(names)} sites)"
    numbers = _varying_numbers(names)
    if numbers is None:
        return f"{names[0]} ... {names[-1]} {count}"
    before, values, after = numbers
    spans = ranges(values)
    if _LAYER.search(before):
        return f"layers {spans} {count}"
    return f"{before}[{spans}]{after} {count}"


def ranges(values: Iterable[int]) -> str:
    """Write whole numbers as ranges: ``0-3, 5, 7-8``."""
    spans: list[tuple[int, int]] = []
    for value in sorted(set(values)):
        if spans and spans[-1][1] == value - 1:
            spans[-1] = (spans[-1][0], value)
        else:
            spans.append((value, value))
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _varying_numbers(names: Sequence[str]) -> tuple[str, list[int], str] | None:
    """Return text before, values, and text after the only number that differs between names."""
    texts = {_NUMBER.sub("#", name) for name in names}
    rows = [_NUMBER.findall(name) for name in names]
    if len(texts) != 1:
        return None
    varying = [i for i, column in enumerate(zip(*rows)) if len(set(column)) > 1]
    if len(varying) != 1 or len({row[varying[0]] for row in rows}) != len(rows):
        return None
    spot = list(_NUMBER.finditer(names[0]))[varying[0]]
    values = [int(row[varying[0]]) for row in rows]
    return names[0][: spot.start()], values, names[0][spot.end() :]
