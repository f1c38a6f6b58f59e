"""What verification holds in memory while it runs: little beside the model that is open."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import onnx
import pytest

from mla_opt.verification import verifier, verify
from mla_opt.verification.oracle import Run
from tests.verify import toys

Make = Callable[[], onnx.ModelProto]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs are still held when each begins."""
    counts: list[int] = []
    arrays: list[weakref.ref[Any]] = []
    run_scenario = verifier.run_scenario

    def counting(*arguments: Any) -> Run:
        gc.collect()
        counts.append(sum(array() is not None for array in arrays))
        run = run_scenario(*arguments)
        arrays.append(weakref.ref(run.calls[0].outputs["logits"]))
        return run

    monkeypatch.setattr(verifier, "run_scenario", counting)
    return counts


def test_runs_of_the_original_are_held_and_one_more(held: list[int]) -> None:
    """Those of the noise floor and of the optimized model go when they are compared."""
    scenarios = len(verify(toys.original(), toys.optimized()).scenarios)
    assert held[:scenarios] == list(range(scenarios))
    assert max(held[scenarios:-3]) == scenarios + 1
    assert held[-3:] == [1, 1, 1]  # of controls: the run that they are compared with


@pytest.mark.parametrize(
    ("original", "optimized", "kept"),
    [
        (toys.original, toys.optimized, (["present_0_keys", "present_0_values"],) * 2),
        (
            toys.original,
            toys.optimized_packed,
            (["present_0_keys", "present_0_values"], ["present_0_latent"]),
        ),
        (toys.original_expanded, toys.optimized_packed, ([], [])),
    ],
)
def test_states_that_are_not_compared_are_not_kept(
    original: Make, optimized: Make, kept: tuple[list[str], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expanded keys and values are not what latent rows are; they are as large as the model."""
    found: dict[str, set[str]] = {}
    run_scenario = verifier.run_scenario

    def looked_at(session: Any, *arguments: Any) -> Run:
        run = run_scenario(session, *arguments)
        found.setdefault(session.label, set()).update(*(call.states for call in run.calls))
        return run

    monkeypatch.setattr(verifier, "run_scenario", looked_at)
    assert verify(original(), optimized(), controls=False).passed
    assert [sorted(found[label]) for label in ("original", "optimized")] == list(kept)
