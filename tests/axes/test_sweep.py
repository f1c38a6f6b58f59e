"""Random models are equal after optimization, or refused; never wrong, never a crash."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.axes import sweep
from tests.axes.drawing import asked, outcome, plans, smallest
from tests.axes.harness import Outcome
from tests.axes.plan import Plan

SOME = settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # faults are made plain in a better way below
    suppress_health_check=list(HealthCheck),
)


@SOME
@given(plans(mutated=False), asked())
def test_latent_attention_in_any_writing_is_equal_or_refused(plan: Plan, word: str) -> None:
    held(plan, word)


@SOME
@given(plans(mutated=True), asked())
def test_what_only_looks_like_it_is_equal_or_refused(plan: Plan, word: str) -> None:
    held(plan, word)


@pytest.mark.sweep
def test_a_hundred_thousand_random_models_are_equal_or_refused() -> None:
    assert sweep.main(["--count", "100000", "--jobs", "2"]) == 0


def held(plan: Plan, word: str = "nothing") -> None:
    found = outcome(plan, word)
    if found.wrong:
        plan, word, found = smallest(plan, word, found)
        pytest.fail(f"{plan.told()} asked {word}: {found}")


def test_faults_are_made_plain() -> None:
    def judge(plan: Plan, word: str) -> Outcome:
        bad = plan.mask == "boolean" and "value t reversed 3" in plan.mutations
        return Outcome("wrong" if bad else "equal", error=0.5 if bad else 0.0)

    noisy = Plan(
        mask="boolean",
        storage="conv",
        gate="wide",
        seed=7,
        mutations=("key t rolled 0", "value t reversed 3"),
    )
    plan, word, found = smallest(noisy, "fold", judge(noisy, "fold"), judge)
    assert plan == Plan(mask="boolean", mutations=("value t reversed 3",))
    assert (word, found.status) == ("nothing", "wrong")


def test_a_tally_counts_and_keeps_one_fault_of_a_kind() -> None:
    tally = sweep.Tally()
    wrong = Outcome("wrong", error=0.5)
    for mutation in ("value t reversed 3", "value t reversed 100", "value t rolled 3"):
        tally.add(Plan(mutations=(mutation,)), "nothing", wrong)
    tally.add(Plan(), "nothing", Outcome("refused", ("b", "a", "a")))
    other = sweep.Tally()
    other.add(Plan(), "nothing", Outcome("equal", matched=1))
    tally.merge(other)
    assert tally.outcomes["mutated", "wrong"] == tally.faulty == 3
    assert tally.outcomes["unmutated", "equal"] == 1
    assert tally.codes == {"a, b": 1}
    assert len(tally.faults) == 2


def test_a_sweep_goes_on_where_its_record_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: list[int] = []

    def drawn(chunk: int, *_: object) -> sweep.Tally:
        run.append(chunk)
        tally = sweep.Tally()
        found = Outcome("wrong", error=0.5) if chunk == 1 else Outcome("refused", ("a",))
        tally.add(Plan(mask="boolean", mutations=("key t rolled 0",)), "fold", found)
        tally.add(Plan(), "nothing", Outcome("refused", ("b",)))
        return tally

    monkeypatch.setattr(sweep, "drawn", drawn)
    record = tmp_path / "record"
    sweep.many(sweep.chunks_of(0, 200), 1, None, None, record)
    tally = sweep.many(sweep.chunks_of(0, 400), 1, None, None, record)
    assert run == [0, 1, 2, 3]
    assert tally.faulty == tally.outcomes["mutated", "wrong"] == 1
    assert tally.codes == {"b": 4}
    ((plan, word, found),) = tally.faults.values()
    assert (plan.mask, plan.mutations, word) == ("boolean", ("key t rolled 0",), "fold")
    assert found.error == 0.5
