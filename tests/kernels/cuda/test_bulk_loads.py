"""Keys by the tensor memory accelerator, on the emulated GPU: which tiles, and that nothing else
changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.cuda.problems import (
    Case,
    check,
    expected,
    operands,
    problem_of,
    results,
)

HALF = np.dtype(np.float16)
ROOT = Path(__file__).parents[3]
# Whole tiles of 64 keys that lie in the cache or among the new rows, of all row tiles together.
TILES = {
    "whole cache": (Case(heads=64, past=320, new_len=0), 5),
    "end within a tile": (Case(heads=64, past=330, dtype=HALF), 5),
    "two row tiles": (Case(heads=128, past=330, sink=True), 10),
    "fewer than a tile": (Case(heads=64, past=40), 0),
    "one tile less a row": (Case(heads=64, past=63), 0),
    "cache and new rows meet between tiles": (Case(heads=40, past=128, new_len=64), 3),
    "cache and new rows meet within a tile": (
        Case(heads=2, query_len=40, new_len=300, past=100),
        10,
    ),
    "new rows alone": (Case(heads=4, query_len=200, has_cache=False, causal=True), 18),
    "rows that see less": (Case(heads=16, query_len=8, lengths=(190,), causal=True), 4),
    "ragged": (Case(heads=64, lengths=(0, 70, 199, 64), causal=True, capacity=300), 5),
    "ragged, into another buffer": (
        Case(heads=64, lengths=(0, 70, 199, 64), aliased=False, capacity=300),
        5,
    ),
    "nothing new": (Case(heads=64, new_len=0, lengths=(128, 127), capacity=200), 3),
    "split cache": (Case(heads=33, lengths=(63, 64, 400), split_cache=True), 7),
    "split cache, many new rows": (
        Case(heads=12, query_len=9, new_len=130, past=200, batch=2, split_cache=True),
        16,
    ),
    "bias": (
        Case(heads=12, query_len=9, past=200, causal=True, bias="additive", bias_shape="st"),
        6,
    ),
    "without rope": (Case(heads=70, past=330, rope=0), 10),
    "splits": (Case(heads=128, past=900), 28),
    "splits, ragged": (Case(heads=48, lengths=(900, 3, 500), sink=True), 21),
}


@pytest.mark.parametrize(("case", "tiles"), TILES.values(), ids=TILES.keys())
def test_whole_tiles_come_in_bulk(emulator, case, tiles):
    """As many as there are, in boxes of 64 columns; and then every bit is as without."""
    multiprocessors = 8 if 900 in (case.past, *(case.lengths or ())) else 1
    options = {"architecture": "90a", "multiprocessors": multiprocessors}
    with emulator.without_tensor_maps():
        before = emulator.boxes()
        wanted, made = emulator.run(case, **options)
        assert emulator.boxes() == before
    check(case, wanted, made)
    for seed in range(3):
        before = emulator.boxes()
        _, again = emulator.run(case, seed=seed, **options)
        assert emulator.boxes() - before == tiles * (case.rank + case.rope) // 64
        for name, array in made.items():
            np.testing.assert_array_equal(again[name].view(np.uint16), array.view(np.uint16))


def test_splits_are_made(emulator):
    """What the cases of that name are about."""
    for name in ("splits", "splits, ragged"):
        case, _ = TILES[name]
        assert emulator.plan(problem(case), "90a", 8)["splits"] > 1


def problem(case, **change):
    arrays = operands(case)
    made = results(case, arrays, expected(case, arrays))
    return problem_of(case.but(change=change), arrays, made, lambda array: array.ctypes.data)


@pytest.mark.parametrize("architecture", ["80", "90", "90a"])
def test_where_it_is_told(emulator, architecture):
    emulator.become(architecture, 0)
    told = emulator.library.loads_in_bulk
    many = Case(heads=64, past=330)
    assert told(problem(many)) == (architecture == "90a")
    with emulator.without_tensor_maps():
        assert not told(problem(many))
    # Few rows, other widths, no whole tile, and nothing that could be launched.
    assert not told(problem(many.but(heads=16)))
    assert not told(problem(many.but(rank=256, rope=32)))
    assert not told(problem(many.but(past=63)))
    assert not told(problem(many, query=8))
    only_new = Case(heads=64, query_len=2, new_len=64, has_cache=False)
    assert told(problem(only_new)) == (architecture == "90a")
    assert not told(problem(only_new.but(new_len=63)))


def test_rows_beyond_the_numbers_that_a_copy_has(emulator):
    """A cache of 2^31 rows and more is copied row by row: the accelerator counts in 32 bits."""
    emulator.become("90a", 0)
    case = Case(heads=64, past=330, batch=4)
    most = (1 << 31) // 4 - 1
    assert emulator.library.loads_in_bulk(problem(case, cache_len=most))
    assert not emulator.library.loads_in_bulk(problem(case, cache_len=most + 1))


BROKEN = """
from pathlib import Path
from tests.kernels.cuda.emulated import Emulator
from tests.kernels.cuda.test_bulk_loads import TILES

emulator = Emulator(Path({library!r}))
with emulator.broken({what!r}):
    emulator.run(TILES[{case!r}][0], architecture="90a")
"""
MISUSED = "import ctypes; ctypes.CDLL({library!r}).mla_opt_misuse({number})"


def check_ends(program: str, said: str | None) -> None:
    """The program ends with what the emulator says; None: as programs should."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.startswith(f"emulator: {said} (" if said else "")
    assert (done.returncode, done.stderr) == (0, "") or (done.returncode < 0 and said)


@pytest.mark.parametrize(
    ("what", "case", "said"),
    [
        ("nothing", "cache and new rows meet within a tile", None),
        ("expect", "whole cache", "more bytes at a barrier than were expected"),
        ("show barriers", "whole cache", "a copy in bulk with a barrier that it cannot see"),
        (
            "show",
            "cache and new rows meet within a tile",
            "a copy in bulk that what was written before may overtake",
        ),
    ],
)
def test_a_kernel_that_lacks_something_is_stopped(emulator, what, case, said):
    """What would mostly go well on a GPU."""
    library = os.fspath(emulator.library.path)
    check_ends(BROKEN.format(library=library, what=what, case=case), said)


# As in native/misuse.cpp.
MISUSES = (
    None,
    "a block ends without a wait for what was copied in bulk",
    "a block ends before its copies in bulk do",
    "a wait for a phase that is not the next",
    "a thread that has missed a phase",
    "more arrivals at a barrier than its phase has",
    "a box that cannot be swizzled by 128 bytes",
    "a box beyond the shared memory",
    "something is written over a barrier",
    "a barrier that nobody has made",
)


@pytest.mark.parametrize("said", MISUSES)
def test_misuse_is_stopped(emulator, said):
    """The emulation is worth something: whatever a GPU does not promise ends it."""
    library, number = os.fspath(emulator.library.path), MISUSES.index(said)
    check_ends(MISUSED.format(library=library, number=number), said)
