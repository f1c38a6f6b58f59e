"""A longer state from a shorter one, without llama.cpp."""

from __future__ import annotations

import struct

import pytest

from mla_opt.benchmarking.peers.llama_state import lengthened, lengthened_older

WIDTH, LAYERS = 6, 2


def state(cells: int, streams: int = 2, values: int | None = None, transposed: int = 0) -> bytes:
    """What llama.cpp writes of sequence 0 in the first of its streams; `values` is their width."""
    parts = [struct.pack("<IiI", 0xAF143CD8, 0, streams), struct.pack("<I", cells)]
    parts += [struct.pack("<iIi", i, 1, 0) for i in range(cells)]
    parts.append(struct.pack("<II", transposed, LAYERS))
    for width in (WIDTH,) if values is None else (WIDTH, values):
        for layer in range(LAYERS):
            parts.append(struct.pack("<iQ", 1, width))
            parts += [bytes([layer * 100 + i % 4] * width) for i in range(cells)]
    parts += [struct.pack("<I", 0)] * (streams - 1)
    return b"".join(parts)


def older_state(cells: int, values: int | None = None, transposed: int = 0) -> bytes:
    """What ik_llama.cpp writes of one sequence."""
    parts = [struct.pack("<I", cells), *(struct.pack("<iI", i, 0) for i in range(cells))]
    parts.append(struct.pack("<II", 2 if values is None else transposed, LAYERS))
    for width in (WIDTH,) if values is None else (WIDTH, values):
        for layer in range(LAYERS):
            parts.append(struct.pack("<iQ", 1, width))
            parts += [bytes([layer * 100 + i % 4] * width) for i in range(cells)]
    return b"".join([*parts, struct.pack("<I", 0)])


@pytest.mark.parametrize("values", [None, 4])
@pytest.mark.parametrize("rows", [4, 8, 41])
def test_rows_of_the_older_layout_repeat(rows: int, values: int | None) -> None:
    assert lengthened_older(older_state(4, values), rows) == older_state(rows, values)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (older_state(4, 4, transposed=1), "transposed"),
        (older_state(4) + bytes(8), "12 bytes are left"),
        (older_state(4)[:-4] + b"\1\0\0\0", "4 bytes are left"),
        (struct.pack("<IiI", 1, 0, 1) + older_state(4)[12:], "cells of some sequence"),
        (older_state(4)[:30], "another layout"),
    ],
    ids=["transposed", "longer", "other end", "of a sequence", "cut"],
)
def test_another_layout_than_the_older_one_is_refused(state: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengthened_older(state, 8)


@pytest.mark.parametrize("values", [None, 4])
@pytest.mark.parametrize("rows", [3, 4, 8, 42])
def test_rows_repeat_and_positions_go_on(rows: int, values: int | None) -> None:
    assert lengthened(state(4, values=values), rows) == state(rows, values=values)


def test_positions_begin_where_they_are_to() -> None:
    cells = struct.pack("<iIi", 7, 1, 0) + struct.pack("<iIi", 8, 1, 0)
    first = struct.pack("<iIi", 0, 1, 0) + struct.pack("<iIi", 1, 1, 0)
    assert lengthened(state(4), 2, 7) == state(2).replace(first, cells)


def test_values_that_lie_transposed_are_refused() -> None:
    with pytest.raises(ValueError, match="transposed"):
        lengthened(state(4, values=4, transposed=1), 8)


def test_it_can_be_made_shorter() -> None:
    assert lengthened(state(8), 4) == state(4)


@pytest.mark.parametrize("broken", [state(4)[:-3], state(4) + b"more", b"", state(4)[4:]])
def test_another_layout_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="another layout"):
        lengthened(broken, 8)
