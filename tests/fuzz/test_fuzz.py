"""A handful of the fuzzer's inputs, so that it keeps running; hours of them are for its command."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from tests.fuzz.__main__ import mutated, seeds, try_one

FOUND = Path(__file__).parent / "found"


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_to_every_input(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    data = mutated(draw.choice(list(seeds())), 1 << 20, seed)
    assert not try_one(data, tmp_path).startswith("finding")


def test_mutations_change_a_model_and_repeat() -> None:
    first = next(seeds())
    made = [mutated(first, 1 << 20, seed) for seed in range(20)]
    assert sum(data != first for data in made) > 15
    assert made == [mutated(first, 1 << 20, seed) for seed in range(20)]


@pytest.mark.parametrize("path", sorted(FOUND.glob("*.gz")), ids=lambda path: path.name)
def test_what_was_found(path: Path, tmp_path: Path) -> None:
    """Inputs that once ended in another way."""
    assert not try_one(gzip.decompress(path.read_bytes()), tmp_path).startswith("finding")
