"""The result of verification."""

from __future__ import annotations

from dataclasses import dataclass

from mla_opt.verification.negative_controls import ControlResult
from mla_opt.verification.parity import OutputParity, ScenarioParity, Tolerance


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Whether the optimized model computes what the original computes, and how that is known.

    Attributes:
        outputs: each output and state at its worst over all scenarios.
        scenarios: the same, run by run.
        controls: broken copies that had to be noticed; empty where they were not asked for.
        tolerance: what error was tolerated.
        seed: what the inputs follow from.
    """

    outputs: tuple[OutputParity, ...]
    scenarios: tuple[ScenarioParity, ...]
    controls: tuple[ControlResult, ...]
    tolerance: Tolerance
    seed: int

    @property
    def passed(self) -> bool:
        """Whether every scenario is close and no control went unnoticed."""
        ran = [scenario for scenario in self.scenarios if scenario.skipped is None]
        close = bool(ran) and all(scenario.passed for scenario in ran)
        return close and all(control.passed for control in self.controls)

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each thing that failed."""
        found = [f"{s.scenario.name}: {s.error}" for s in self.scenarios if s.error is not None]
        found += [_output_failure(output) for output in self.outputs if not output.passed]
        found += [
            f"control {c.name} not detected: {c.reason}" for c in self.controls if not c.passed
        ]
        return tuple(found)

    def as_dict(self) -> dict[str, object]:
        """Return everything as plain values, for JSON."""
        return {
            "passed": self.passed,
            "failures": list(self.failures),
            "outputs": [output.as_dict() for output in self.outputs],
            "scenarios": [scenario.as_dict() for scenario in self.scenarios],
            "controls": [control.as_dict() for control in self.controls],
            "tolerance": {"floor": self.tolerance.floor, "ceiling": self.tolerance.ceiling},
            "seed": self.seed,
        }


def _output_failure(output: OutputParity) -> str:
    if output.problem is not None:
        return f"{output.name}: {output.problem}"
    if output.new_nonfinite:
        return f"{output.name}: {output.new_nonfinite} elements are NaN or infinite"
    allowed = f"{output.tolerance:.2e} tolerated"
    return f"{output.name}: error {output.relative:.2e} of the spread, {allowed}"
