"""What depends on stored tensors only, in graphs of any depth and of any mistake."""

from __future__ import annotations

import pytest

from mla_opt.graphs.dependence import depends_on_stored_only

DEPTH = 50_000


def decide(operands: dict[str, list[str]], leaves: dict[str, bool], value: str) -> bool:
    return depends_on_stored_only(value, {}, leaves.get, operands.__getitem__)


@pytest.mark.parametrize("stored", [True, False])
def test_a_deep_graph(stored: bool) -> None:
    chain = {f"v{i}": [f"v{i - 1}", f"v{i - 1}"] for i in range(1, DEPTH)}
    assert decide(chain, {"v0": stored}, f"v{DEPTH - 1}") is stored


def test_all_operands_must_be_stored() -> None:
    operands = {"sum": ["weight", "shifted"], "shifted": ["input"], "twice": ["weight", "weight"]}
    leaves = {"weight": True, "input": False}
    assert not decide(operands, leaves, "sum")
    assert decide(operands, leaves, "twice")


def test_a_circle_is_not_stored() -> None:
    assert not decide({"a": ["b"], "b": ["weight", "a"]}, {"weight": True}, "a")


def test_what_was_decided_is_not_asked_for_again() -> None:
    known = {"made": True}
    assert depends_on_stored_only("made", known, lambda value: None, lambda value: [])
