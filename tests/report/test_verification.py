"""The one line that a report says of its verification."""

from __future__ import annotations

from typing import Any

import pytest

from mla_opt.report.verification import summary


def output(name: str, relative: float | None, tolerance: float = 1e-4) -> dict[str, Any]:
    return {"name": name, "relative": relative, "tolerance": tolerance}


def test_worst_is_by_tolerance_not_by_size() -> None:
    outputs = [output("logits", 1e-5, 1e-2), output("cache", 5e-6, 1e-5)]
    controls = [
        {"applicable": True, "detected": True},
        {"applicable": True, "detected": False},
        {"applicable": False, "detected": False},
    ]
    assert summary({"passed": True, "outputs": outputs, "controls": controls}) == (
        "verification passed, 2 outputs and states compared, "
        "worst cache: error 5.0e-06 of the spread, 1.0e-05 tolerated, 1 of 2 broken copies noticed"
    )


def test_what_could_not_be_measured_is_worst() -> None:
    shown = summary({"passed": False, "outputs": [output("a", 1.0), output("b", None)]})
    assert "FAILED" in shown
    assert "worst b: not measurable" in shown


def test_the_drift_is_told_at_its_largest() -> None:
    drift: dict[str, Any] = {
        "outputs": [
            {"name": "logits", "original": 0.02, "optimized": 0.01},
            {"name": "cache", "original": 0.003, "optimized": 0.004},
            {"name": "lost", "original": 1.0, "optimized": None},
        ],
        "problems": [],
    }
    shown = summary({"passed": True, "outputs": [], "drift": drift})
    assert shown.endswith("activations 2.0e-02 before, 1.0e-02 after (rms of spread)")
    drift = {"outputs": [], "problems": ["no kernel for that"]}
    assert summary({"passed": True, "drift": drift}).endswith("not measured: no kernel for that")
    assert "drift" not in summary({"passed": True, "drift": None})


def test_any_error_is_too_much_where_none_is_tolerated() -> None:
    shown = summary({"outputs": [output("a", 1e-5), output("exact", 1e-9, 0.0)]})
    assert "worst exact" in shown


@pytest.mark.parametrize("odd", [{}, {"outputs": 3}, {"outputs": [1, "a"], "controls": None}])
def test_odd_reports_are_no_error(odd: dict[str, Any]) -> None:
    assert summary(odd) == "verification FAILED, 0 outputs and states compared"
