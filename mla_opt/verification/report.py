"""The result of verification."""

from __future__ import annotations

from dataclasses import dataclass, field

from mla_opt.verification.drift import Drift
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
        quantized: operators of quantization, where only the optimized model has some; else empty.
        borrowed: how many of its layers with quantized weights the original was given for that.
        drift: of both models as they are deployed, where something rounds their activations.
        layers: how many parts were run, each by itself; 0 where the models were run whole.
        stand_in: the operator that no provider here has, in whose place its definition was run;
            empty where all operators were run as they are.
    """

    outputs: tuple[OutputParity, ...]
    scenarios: tuple[ScenarioParity, ...]
    controls: tuple[ControlResult, ...]
    tolerance: Tolerance
    seed: int
    quantized: str = ""
    borrowed: int = 0
    drift: Drift = field(default_factory=Drift)
    layers: int = 0
    stand_in: str = ""

    @property
    def passed(self) -> bool:
        """Whether every scenario is close and no control went unnoticed."""
        ran = [scenario for scenario in self.scenarios if scenario.skipped is None]
        close = bool(ran) and all(scenario.passed for scenario in ran)
        controlled = all(control.passed for control in self.controls)
        return close and controlled and not self.drift.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """One sentence for each thing that failed."""
        found = [f"{s.scenario.name}: {s.error}" for s in self.scenarios if s.error is not None]
        found += [_output_failure(output) for output in self.outputs if not output.passed]
        found += [
            f"control {c.name} not detected: {c.reason}" for c in self.controls if not c.passed
        ]
        return (*found, *self.drift.failures)

    @property
    def note(self) -> str:
        """What is to be known of the difference; empty where there is nothing."""
        if not self.quantized:
            return self._how()
        after = f"the optimized model was quantized after it was optimized ({self.quantized})"
        if self.borrowed and self.passed:
            return (
                f"{after}: it computes what the original computes whose {self.borrowed} layers have"
                " the same quantized weights. The drift is that from the original as it is"
            )
        return (
            f"{after}: what is measured is the drift of its quantization, behind which an error of"
            " the optimization could hide. To check the optimization, verify the model as it was"
            " before it was quantized, or quantize the original and optimize that"
        )

    def _how(self) -> str:
        if self.stand_in:
            return (
                f"in the place of each {self.stand_in} its definition was run, in standard"
                " operators; the operator itself was not"
            )
        if not self.layers:
            return ""
        return (
            f"verified layer by layer: all operators and weights of both models were compared, and"
            f" the {self.layers} parts that differ were run, each by itself"
        )

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
            "quantized": self.quantized,
            "borrowed": self.borrowed,
            "drift": self.drift.as_dict() if self.drift else None,
            "layers": self.layers,
            "stand_in": self.stand_in,
        }


def _output_failure(output: OutputParity) -> str:
    if output.problem is not None:
        return f"{output.name}: {output.problem}"
    if output.new_nonfinite:
        return f"{output.name}: {output.new_nonfinite} elements are NaN or infinite"
    allowed = f"{output.tolerance:.2e} tolerated"
    return f"{output.name}: error {output.relative:.2e} of the spread, {allowed}"
