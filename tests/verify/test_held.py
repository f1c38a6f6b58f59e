"""What verification holds in memory while it runs: little beside the model that is open."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import onnx
import pytest

from mla_opt.verification import verifier, verify
from mla_opt.verification.onnx import sessions
from mla_opt.verification.onnx.sessions import open_model
from mla_opt.verification.oracle import Run, run_scenario
from mla_opt.verification.pair import Pair
from mla_opt.verification.scenarios import Scenario
from tests.verify import toys

Make = Callable[[], onnx.ModelProto]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs are still held when each begins."""
    gc.freeze()  # what is there by now is not looked through for every run
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


def test_of_several_states_those_are_kept_that_are_compared() -> None:
    model = open_model(toys.original(), "original")
    driver, two_steps = Pair.of(model, model).before, Scenario("steps", 1, (3, 1), (0,))
    run = run_scenario(model.session(), driver, two_steps, 0, ["present_0_values"])
    assert [list(call.states) for call in run.calls] == [[], ["present_0_values"]]


def test_sessions_give_back_what_a_call_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    load = sessions._load
    monkeypatch.setattr(sessions, "_load", lambda *all_: given.append(all_[-1]) or load(*all_))
    open_model(toys.original(), "original").session()
    assert [options.enable_cpu_mem_arena for options in given] == [False]
