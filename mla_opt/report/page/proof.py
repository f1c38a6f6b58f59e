"""A verification as rows of tables, from its plain form.

It may have been read from a file that anybody wrote, so nothing relies on a field being there, or
being of its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mla_opt.report.verification import entries


@dataclass(frozen=True, slots=True)
class Compared:
    """One output or state of both models, at its worst. ``None`` is what was not measured."""

    name: str
    error: float | None
    noise: float | None
    tolerance: float | None
    passed: bool
    problem: str


@dataclass(frozen=True, slots=True)
class Control:
    """One broken copy that had to be noticed; ``verdict`` is in words."""

    name: str
    breaks: str
    sites: str
    error: float | None
    passed: bool
    verdict: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run of calls; ``passed`` is ``None`` where the original could not run it."""

    name: str
    batch: str
    past: str
    calls: str
    padding: str
    passed: bool | None
    note: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What was compared, what was broken on purpose, and what failed."""

    outputs: tuple[Compared, ...]
    controls: tuple[Control, ...]
    scenarios: tuple[Scenario, ...]
    failures: tuple[str, ...]


def read_proof(verification: Mapping[str, object]) -> Proof:
    """Read the plain form of a parity report."""
    failures = verification.get("failures")
    return Proof(
        outputs=tuple(_compared(each) for each in entries(verification, "outputs")),
        controls=tuple(_control(each) for each in entries(verification, "controls")),
        scenarios=tuple(_scenario(each) for each in entries(verification, "scenarios")),
        failures=tuple(map(str, failures)) if isinstance(failures, list | tuple) else (),
    )


def _compared(output: Mapping[str, Any]) -> Compared:
    error, tolerance = _number(output.get("relative")), _number(output.get("tolerance"))
    passed = output.get("passed")
    if passed is None:  # of a release that did not say it for each output
        passed = error is not None and tolerance is not None and error <= tolerance
    problem = _text(output.get("problem"))
    noise = _number(output.get("noise"))
    return Compared(_text(output.get("name")), error, noise, tolerance, bool(passed), problem)


def _control(control: Mapping[str, Any]) -> Control:
    reason, detected = _text(control.get("reason")), bool(control.get("detected"))
    if not control.get("applicable"):
        verdict, passed = f"not applicable: {reason}", True
    else:
        verdict, passed = ("noticed" if detected else f"NOT noticed: {reason}"), detected
    return Control(
        name=_text(control.get("name")),
        breaks=_text(control.get("breaks")),
        sites=_text(control.get("sites")),
        error=_number(control.get("relative")),
        passed=passed,
        verdict=verdict,
    )


def _scenario(scenario: Mapping[str, Any]) -> Scenario:
    skipped = scenario.get("skipped")
    return Scenario(
        name=_text(scenario.get("name")),
        batch=_text(scenario.get("batch")),
        past=_text(scenario.get("initial_past")),
        calls=_list(scenario.get("calls")),
        padding=_list(scenario.get("padding")),
        passed=bool(scenario.get("passed")) if skipped is None else None,
        note=_text(skipped if skipped is not None else scenario.get("error")),
    )


def _number(value: object) -> float | None:
    counts = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if counts else None  # type: ignore[arg-type]


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _list(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else ""
