"""A longer state from a shorter one, without llama.cpp."""

from __future__ import annotations

import struct

import pytest

from mla_opt.benchmarking.peers.llama_state import lengthened

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


@pytest.mark.parametrize("values", [None, 4])
@pytest.mark.parametrize("rows", [4, 8, 40])
def test_rows_repeat_and_positions_go_on(rows: int, values: int | None) -> None:
    assert lengthened(state(4, values=values), rows) == state(rows, values=values)


def test_values_that_lie_transposed_are_refused() -> None:
    with pytest.raises(ValueError, match="transposed"):
        lengthened(state(4, values=4, transposed=1), 8)


def test_it_can_be_made_shorter() -> None:
    assert lengthened(state(8), 4) == state(4)


@pytest.mark.parametrize("broken", [state(4)[:-3], state(4) + b"more", b"", state(4)[4:]])
def test_another_layout_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="another layout"):
        lengthened(broken, 8)
