"""llama.cpp's bytes of one sequence's cache, made longer by repeating it.

A deep cache takes llama.cpp minutes to fill, and the time of a step depends on how many rows there
are, not on what is in them. Its bytes are::

    magic u32, sequence i32, streams u32,
    for each stream: cells u32, and unless that is 0
        for each cell: position i32, sequences u32 (1), sequence i32
        transposed u32, layers u32
        for each layer: type i32, bytes of a row u64, its keys
        for each layer: the same of its values, unless rows are latent

Values that lie transposed, as without flash attention, are not taken.

ik_llama.cpp, which left llama.cpp before there were streams, has no head: the count comes first,
cells are of no sequence, 2 in the place of *transposed* says that there are no values, and a zero
is at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Part = tuple[Bytes, int]
"""Bytes that are repeated until they are so many: a whole cache can be most of the memory."""

_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
_CELL_OF_NONE = np.dtype([("position", "<i4"), ("sequences", "<u4")])
_HEAD, _COUNT, _LAYERS, _LAYER = "<IiI", "<I", "<II", "<iQ"
_NO_VALUES = 2


def lengthened(state: bytes, rows: int, first: int = 0) -> bytearray:
    """Return the state with ``rows`` cells at positions ``first`` to ``first + rows - 1``.

    Raises:
        ValueError: it is laid out otherwise, which another version of llama.cpp may do.
    """
    try:
        return _joined(_parts(state, rows, first))
    except (struct.error, ValueError) as error:
        raise ValueError(f"llama.cpp wrote a state of another layout: {error}") from error


def lengthened_older(state: bytes, rows: int) -> bytearray:
    """Return a state of ik_llama.cpp with ``rows`` cells at positions 0 to ``rows - 1``.

    Raises:
        ValueError: it is laid out otherwise, which another version may do.
    """
    try:
        return _joined(_parts_without_head(state, rows))
    except (struct.error, ValueError) as error:
        raise ValueError(f"ik_llama.cpp wrote a state of another layout: {error}") from error


def _joined(parts: Sequence[Part]) -> bytearray:
    """All parts, one behind the other, made where they are to be."""
    joined = bytearray(sum(length for _, length in parts))
    place, at = np.frombuffer(joined, np.uint8), 0
    for content, length in parts:
        rest = length % max(content.size, 1)
        place[at : at + length - rest].reshape(-1, max(content.size, 1))[:] = content
        place[at + length - rest : at + length] = content[:rest]
        at += length
    return joined


def _part(content: bytes) -> Part:
    """Bytes as they are."""
    return np.frombuffer(content, np.uint8), len(content)


def _parts_without_head(state: bytes, rows: int) -> list[Part]:
    (cells,) = struct.unpack_from(_COUNT, state)
    at = struct.calcsize(_COUNT)
    known = np.frombuffer(state, _CELL_OF_NONE, cells, at)
    if known["sequences"].any():
        raise ValueError("cells of some sequence")
    at += known.nbytes
    made = np.zeros(rows, _CELL_OF_NONE)
    made["position"] = np.arange(rows)
    values, layers = struct.unpack_from(_LAYERS, state, at)
    if values not in (0, _NO_VALUES):
        raise ValueError("values that lie transposed")
    front = struct.pack(_COUNT, rows), made.tobytes(), struct.pack(_LAYERS, values, layers)
    parts = [*map(_part, front)]
    at += struct.calcsize(_LAYERS)
    for _ in range(1 if values else 2):
        kept, at = _layers(state, at, layers, cells, rows)
        parts += kept
    if any(state[at:]) or len(state) - at > struct.calcsize(_COUNT):
        raise ValueError(f"{len(state) - at} bytes are left")
    return [*parts, _part(state[at:])]


def _parts(state: bytes, rows: int, first: int) -> list[Part]:
    _magic, sequence, streams = struct.unpack_from(_HEAD, state)
    at = struct.calcsize(_HEAD)
    parts = [_part(state[:at])]
    for left in reversed(range(streams)):
        (cells,) = struct.unpack_from(_COUNT, state, at)
        at += 4
        if cells == 0:
            parts.append(_part(struct.pack(_COUNT, 0)))
            continue
        known = np.frombuffer(state, _CELL, cells, at)
        at += known.nbytes
        if (known["sequences"] != 1).any():
            raise ValueError("cells of more than one sequence")
        parts += map(_part, (struct.pack(_COUNT, rows), _cells(rows, first, sequence)))
        transposed, layers = struct.unpack_from(_LAYERS, state, at)
        parts.append(_part(state[at : at + struct.calcsize(_LAYERS)]))
        at += struct.calcsize(_LAYERS)
        keys, at = _layers(state, at, layers, cells, rows)
        parts += keys
        if len(state) - at > left * struct.calcsize(_COUNT):  # more than the other, empty streams
            if transposed:
                raise ValueError("values that lie transposed")
            values, at = _layers(state, at, layers, cells, rows)
            parts += values
    if at != len(state):
        raise ValueError(f"{len(state) - at} bytes are left")
    return parts


def _cells(rows: int, first: int, sequence: int) -> bytes:
    cells = np.zeros(rows, _CELL)
    cells["position"] = np.arange(first, first + rows)
    cells["sequences"], cells["sequence"] = 1, sequence
    return cells.tobytes()


def _layers(state: bytes, at: int, layers: int, cells: int, rows: int) -> tuple[list[Part], int]:
    """The keys, or the values, of all layers, and where they end."""
    parts: list[Part] = []
    for _ in range(layers):
        _, width = struct.unpack_from(_LAYER, state, at)
        size = struct.calcsize(_LAYER)
        parts.append(_part(state[at : at + size]))
        at += size
        parts.append((np.frombuffer(state, np.uint8, cells * width, at), rows * width))
        at += cells * width
    return parts, at
