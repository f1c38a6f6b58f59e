"""Heads that do not all hold one rotary row as it is: its numbers are among those of the latent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.axes.drawing import ASKED
from tests.axes.harness import SIZES, equal_or_refused
from tests.graphs.latent_block import Block, Tape, build
from tests.passes.harness import EXTRACT, graph_of, run

SMALL = (SIZES[1], SIZES[3])


def in_turn(tape: Tape, value: str) -> str:
    """Every second head has k_pe in front: heads put together one by one."""
    block = tape.block
    heads = tape("Split", value, outputs=block.heads, axis=1, num_outputs=block.heads)
    turned = []
    for index, head in enumerate(heads):
        nope, rope = tape("Split", head, tape.ints(block.nope, block.rope), outputs=2, axis=3)
        turned.append(tape("Concat", *((rope, nope) if index % 2 else (nope, rope)), axis=3))
    return tape("Concat", *turned, axis=1)


def half_negated(tape: Tape, value: str) -> str:
    half = tape.block.rope // 2
    first, second = tape("Split", value, tape.ints(half, half), outputs=2, axis=3)
    return tape("Concat", first, tape("Neg", second), axis=3)


def of_one_head(tape: Tape, value: str) -> str:
    """The last head's keys are k_pe alone, those of the others are without it."""
    block = tape.block
    keep = np.ones((1, block.heads, 1, block.width), np.float32)
    keep[:, :-1, :, block.nope :] = 0
    keep[:, -1:, :, : block.nope] = 0
    return tape("Mul", value, tape.stored(keep, "parts_of_heads"))


def half_of_another(tape: Tape, value: str) -> str:
    """Half of the shared dims from k_pe, half from another row that is repeated."""
    block, half = tape.block, tape.block.rope // 2
    first, _ = tape("Split", value, tape.ints(half, half), outputs=2, axis=3)
    made = tape("MatMul", "inputs_embeds", tape.weight("own_a.weight", block.hidden, half))
    row = tape("Unsqueeze", tape("Tanh", made), tape.ints(1))
    return tape("Concat", first, tape("Expand", row, tape.ints(1, block.heads, 1, 1)), axis=3)


WAYS = {
    "in turn": Block(edits={"key": in_turn}),
    "half negated": Block(edits={"key_rope": half_negated}),
    "of one head": Block(edits={"key": of_one_head}),
    "half of another row": Block(edits={"key_rope": half_of_another}, cache="none"),
}


def found(block: Block, word: str) -> tuple[str, int]:
    outcome = equal_or_refused(build(block), sizes=SMALL, **ASKED[word])
    return outcome.status, outcome.matched


@pytest.mark.parametrize("word", ["nothing", "packed", "even", "static", "expanded"])
@pytest.mark.parametrize("way", list(WAYS))
def test_it_is_equal(way: str, word: str) -> None:
    assert found(WAYS[way], word) == ("equal", 1)


@pytest.mark.parametrize("cache", ["packed", "expanded", "none"])
def test_with_every_cache(cache: Any) -> None:
    block = replace(WAYS["of one head"], cache=cache)
    assert {found(block, word) for word in ("nothing", "static")} == {("equal", 1)}


def test_at_the_widths_of_released_models() -> None:
    block = replace(WAYS["of one head"], nope=128, rope=64, value=128, latent=512)
    assert {found(block, word) for word in ("nothing", "static")} == {("equal", 1)}


def sites(block: Block) -> tuple[list[str], list[str]]:
    """Geometries, and codes of what was refused."""
    graph = graph_of(block)
    *_, result = run(graph, *EXTRACT)
    return [str(site.geometry) for site in graph.sites], [each.code for each in result.refusals]


@pytest.mark.parametrize(
    ("way", "latent"),
    [("in turn", 16), ("half negated", 16), ("of one head", 16), ("half of another row", 18)],
)
def test_its_numbers_are_of_the_latent(way: str, latent: int) -> None:
    assert sites(WAYS[way]) == ([f"H=3 N=12 R=0 V=6 C={latent} Q=14 E=20"], [])


def test_rows_that_other_layers_read_are_left_as_they_are() -> None:
    """One of them would have its cache cut at another place than the other."""
    block = replace(WAYS["of one head"], layers=2, share=True)
    assert sites(block) == ([], ["rope_mixed", "rope_mixed"])
