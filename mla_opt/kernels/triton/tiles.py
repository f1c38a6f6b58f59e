"""How a call is cut up: sizes of a tile for each kind of device, and parts of the keys.

The tiles are those that the compiler makes without spilling registers for rows of 512 + 64 (8 bytes
are spilt on 8.6 and 8.9 with an additive bias, and up to 56 of 256 + 32 and 512 + 0), and that fit
the shared memory of a processor: 163 KB on 8.0, 227 KB on 9.0 and 10.0, 99 KB on 8.6, 8.9 and 12.0.
The tests assert so for all of these and Triton 3.9.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_SPLITS = 64
# Below this many keys a part is not worth the writing and reading of its result.
LEAST_KEYS_PER_SPLIT = 256
# Programs for each multiprocessor: one fits at a time, a second one evens out the lengths.
_PROGRAMS_PER_PROCESSOR = 2
_LARGEST_SHARED_MEMORY = ((9, 0), (10, 0), (10, 3))


class Tile(NamedTuple):
    """Query rows and keys of a tile, and how it is computed."""

    block_m: int
    block_n: int
    warps: int
    stages: int


def tile_for(capability: tuple[int, int], rows: int, element_size: int) -> Tile:
    """Return the tile for this many query rows (heads times positions) of a sequence.

    Tiles of 64 rows, which the newer matrix units would take, spill with some releases of ptxas.
    """
    if element_size == 4:
        return Tile(16, 16, 4, 1)
    if rows <= 16:
        return Tile(16, 32, 4, 3)
    return Tile(32, 64 if capability in _LARGEST_SHARED_MEMORY else 32, 8, 2)


def splits_for(tiles: int, total_len: int, processors: int) -> int:
    """Return the number of parts of the keys, such that there is work for every processor.

    ``tiles`` counts those of all sequences. The longest sequence decides: the length of the others
    is known on the device only, where they share their keys among as many parts.
    """
    wanted = _PROGRAMS_PER_PROCESSOR * processors // max(tiles, 1)
    return max(1, min(wanted, total_len // LEAST_KEYS_PER_SPLIT, MOST_SPLITS))
