"""A verification, kept in a report as plain JSON, in one line for a person.

``verify`` has its own tables (:mod:`mla_opt.verification.table`); a report may have been read from
a file of another version, so nothing here relies on a field being there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def summary(verification: Mapping[str, object]) -> str:
    """Return how many outputs were compared, the worst of them, and the controls."""
    outputs, controls = entries(verification, "outputs"), entries(verification, "controls")
    verdict = "passed" if verification.get("passed") else "FAILED"
    parts = [f"verification {verdict}", f"{len(outputs)} outputs and states compared"]
    if outputs:
        parts.append(_worst(outputs))
    if applicable := [c for c in controls if c.get("applicable")]:
        noticed = sum(bool(control.get("detected")) for control in applicable)
        parts.append(f"{noticed} of {len(applicable)} broken copies noticed")
    if drift := _drift(verification):
        parts.append(drift)
    return ", ".join(parts)


def _drift(verification: Mapping[str, object]) -> str:
    """Both models as they are deployed, at the output that is farthest from floating point."""
    drift = verification.get("drift")
    if not isinstance(drift, Mapping):
        return ""
    measured = [
        (before, after)
        for output in entries(drift, "outputs")
        for before, after in [(output.get("original"), output.get("optimized"))]
        if isinstance(before, float) and isinstance(after, float)
    ]
    if measured:
        before, after = max(measured, key=max)
        both = f"{before:.1e} before, {after:.1e} after"
        if (limit := drift.get("limit")) is not None:
            return f"drift by codes in the cache {after:.1e} (rms of spread), {limit:.1e} tolerated"
        return f"drift of quantized activations {both} (rms of spread)"
    problems = drift.get("problems")
    return f"drift not measured: {problems[0]}" if isinstance(problems, list) and problems else ""


def entries(verification: Mapping[str, object], key: str) -> list[Mapping[str, Any]]:
    """Return what the list ``key`` holds, as far as it is a list of mappings."""
    found = verification.get(key)
    entries = found if isinstance(found, list | tuple) else ()
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _worst(outputs: list[Mapping[str, Any]]) -> str:
    # What could not be measured is worse than any number.
    worst = max(outputs, key=_badness)
    error, tolerance = worst.get("relative"), worst.get("tolerance")
    if not isinstance(error, float | int) or not isinstance(tolerance, float | int):
        return f"worst {worst.get('name')}: not measurable"
    return f"worst {worst.get('name')}: error {error:.1e} of the spread, {tolerance:.1e} tolerated"


def _badness(output: Mapping[str, Any]) -> float:
    error, tolerance = output.get("relative"), output.get("tolerance")
    if not isinstance(error, float | int) or not isinstance(tolerance, float | int):
        return float("inf")
    return error / tolerance if tolerance else float(error > 0) * 1e300
