"""Who steps when."""

from __future__ import annotations

import pytest

from mla_opt.benchmarking import turns


class Fixed:
    """Takes as long as it is said to, and notes when."""

    def __init__(self, name: str, ms: float, order: list[str]) -> None:
        self.name, self.ms, self.order = name, ms, order

    def step(self) -> float:
        self.order.append(self.name)
        return self.ms


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "PAUSE", 0.0)


def test_turns_alternate_and_the_quick_one_gets_more_steps() -> None:
    order: list[str] = []
    workers = {"a": Fixed("a", 100.0, order), "b": Fixed("b", 10.0, order)}
    samples = turns.take_turns(workers, rounds=2, turn_ms=40.0)
    assert "".join(order) == "abbbb" * 2 or "".join(order) == "abbb" * 2
    assert samples["a"] == [100.0, 100.0]


def test_no_round_begins_after_the_time_but_the_first_always_does() -> None:
    workers = {"a": Fixed("a", 1.0, [])}
    assert turns.take_turns(workers, rounds=9, turn_ms=0.0, seconds=0.0) == {"a": [1.0]}


@pytest.mark.parametrize(("first", "more"), [(1.0, 1), (900.0, 0)])
def test_long_steps_are_warmed_up_once(first: float, more: int) -> None:
    order: list[str] = []
    turns.warm_up(Fixed("a", first, order), first)
    assert len(order) == more
