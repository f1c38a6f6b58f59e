"""Other processes' work, from two readings."""

from __future__ import annotations

import pytest

from mla_opt.benchmarking.disturbance import Reading


def test_what_is_not_ours_is_others() -> None:
    before, after = Reading(10.0, 100.0, 5.0), Reading(20.0, 115.0, 12.0)
    assert after.others(before) == pytest.approx(0.8)


def test_rounding_never_gives_less_than_nothing() -> None:
    assert Reading(2.0, 1.0, 9.0).others(Reading(1.0, 1.0, 1.0)) == 0.0


def test_counters_go_up() -> None:
    before = Reading.now()
    sum(range(100_000))
    after = Reading.now()
    assert after.clock > before.clock
    assert after.busy >= before.busy
    assert after.own >= before.own
