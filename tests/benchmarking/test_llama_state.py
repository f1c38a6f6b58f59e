"""A longer state from a shorter one, without llama.cpp."""

from __future__ import annotations

import struct

import pytest

from mla_opt.benchmarking.peers.llama_state import lengthened

WIDTH, LAYERS = 6, 2


def state(cells: int, streams: int = 2) -> bytes:
    """What llama.cpp writes of sequence 0 in the first of its streams."""
    parts = [struct.pack("<IiI", 0xAF143CD8, 0, streams), struct.pack("<I", cells)]
    parts += [struct.pack("<iIi", i, 1, 0) for i in range(cells)]
    parts.append(struct.pack("<II", 0, LAYERS))
    for layer in range(LAYERS):
        parts.append(struct.pack("<iQ", 1, WIDTH))
        parts += [bytes([layer * 100 + i % 4] * WIDTH) for i in range(cells)]
    parts += [struct.pack("<I", 0)] * (streams - 1)
    return b"".join(parts)


@pytest.mark.parametrize("rows", [4, 8, 40])
def test_rows_repeat_and_positions_go_on(rows: int) -> None:
    assert lengthened(state(4), rows) == state(rows)


def test_it_can_be_made_shorter() -> None:
    assert lengthened(state(8), 4) == state(4)


@pytest.mark.parametrize("broken", [state(4)[:-3], state(4) + b"more", b"", state(4)[4:]])
def test_another_layout_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="another layout"):
        lengthened(broken, 8)
