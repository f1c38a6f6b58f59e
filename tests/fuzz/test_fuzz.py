"""A handful of the fuzzer's inputs, so that it keeps running; hours of them are for its command."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import onnx
import pytest

import mla_opt
from mla_opt.graphs.onnx import parts
from mla_opt.matching import shapes_of_rows
from tests.fuzz.__main__ import mutated, seeds, try_one

FOUND = Path(__file__).parent / "found"


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a graph are refused from a smaller size on: none of these models needs it."""
    monkeypatch.setattr(parts, "MOST_ALIVE", 1 << 20)
    monkeypatch.setattr(shapes_of_rows, "_MOST", 1 << 20)


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


def test_sizes_that_a_file_declares_are_not_made() -> None:
    """A batch of 2^20 in an 11 kB file: 17 GB, were its attention run."""
    data = gzip.decompress((FOUND / "oom_batch_of_2_to_the_20.onnx.gz").read_bytes())
    (attention,) = mla_opt.inspect(onnx.load_from_string(data)).attentions
    assert attention.refusal is not None
    assert attention.refusal.code == "region_not_closed"
    assert "more than 1048576" in attention.refusal.reason


def test_an_operator_that_would_read_its_own_result(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    (found,) = FOUND.glob("PassError_ValueError_at_edits*.gz")
    path.write_bytes(gzip.decompress(found.read_bytes()))
    with pytest.raises(mla_opt.InputError, match="made of its own result"):
        mla_opt.optimize(path, verify=False)
