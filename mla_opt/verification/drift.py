"""How far quantization takes both models from what they compute in floating point.

Whether the optimized model computes what the original does is told by twins without roundings. What
is deployed rounds, each model in its own places: that drift is reported. Of activations it decides
nothing, as the original has it too; latent rows in codes are of our making, and have a limit. It is
a root mean square, as one token that a router sends to another expert is all of a maximum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from mla_opt.verification.alignment import JOINS, Aligner, Pair
from mla_opt.verification.oracle import Run

#: Most drift of a model whose caches hold codes of a type. Exports of two layers with random
#: weights have 0.015 and 0.06, blocks without a norm between them up to 0.18 and 0.7; two models
#: that have nothing to do with each other, 1.4.
LIMITS = {"int8": 0.5, "float8_e4m3fn": 1.0}


@dataclass(frozen=True, slots=True)
class OutputDrift:
    """Root mean square distance of one output or state from the original's, in floating point.

    Relative to the spread (standard deviation) of that; ``None`` where a model could not be run.
    """

    name: str
    original: float | None
    optimized: float | None

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Drift:
    """The drift of both models as they are deployed; ``problems`` say what could not be run.

    ``limit`` is what the optimized model's may be, where it is one of our making.
    """

    outputs: tuple[OutputDrift, ...] = ()
    problems: tuple[str, ...] = ()
    scenario: str = ""
    limit: float | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the fields, for JSON."""
        outputs = [output.as_dict() for output in self.outputs]
        return {
            "scenario": self.scenario,
            "outputs": outputs,
            "problems": list(self.problems),
            "limit": self.limit,
        }

    @property
    def failures(self) -> tuple[str, ...]:
        """What is beyond the limit, or could not be measured though there is one."""
        if self.limit is None:
            return ()
        measured = [each for each in self.outputs if each.optimized is not None]
        beyond = [
            f"{each.name}: drift {each.optimized:.2e} of the spread by codes in the cache,"
            f" {self.limit:.2e} tolerated"
            for each in measured
            if each.optimized is not None and not each.optimized <= self.limit
        ]
        missing = () if measured else ("the drift by codes in the cache was not measured",)
        return (*self.problems, *beyond, *missing)

    def __bool__(self) -> bool:
        """Whether anything was measured, or kept from being measured."""
        return bool(self.outputs or self.problems)


@dataclass(frozen=True, slots=True)
class Deployed:
    """One model as it is deployed: its run, and how that corresponds to the reference's."""

    aligner: Aligner
    run: Run

    def drift(self, reference: Run) -> dict[str, float]:
        """The root mean square distance from the reference of every output."""
        return rms_by_name(self.aligner.pairs(reference, self.run))


def measure_drift(
    reference: Run, original: Deployed, optimized: Deployed, limit: float | None = None
) -> Drift:
    """Compare both models as they are deployed with the original in floating point."""
    before, after = (side.drift(reference) for side in (original, optimized))
    outputs = tuple(
        OutputDrift(name, _drift_of(name, before), after.get(name)) for name in after or before
    )
    problems = tuple(side.run.error for side in (original, optimized) if side.run.error)
    return Drift(outputs, problems, reference.scenario.name, limit)


def _drift_of(name: str, measured: Mapping[str, float]) -> float | None:
    """The drift of an output, or the largest of states that are compared as one."""
    parts = [measured[part] for part in name.split(JOINS) if part in measured]
    return max(parts, default=None)


@dataclass(slots=True)
class _Sums:
    """Of one output, over several calls: squared errors, and squared spreads, by element."""

    errors: float = 0.0
    spread: float = 0.0
    count: int = 0

    def add(self, pair: Pair) -> None:
        """Count in one pair, as far as it is valid and finite in the reference."""
        reference, candidate = (x.astype(np.float64) for x in (pair.reference, pair.candidate))
        valid = np.broadcast_to(pair.valid, reference.shape) & np.isfinite(reference)
        if not valid.any():
            return
        self.errors += float(np.sum((reference - candidate)[valid] ** 2))
        self.spread += float(np.var(reference[valid])) * int(valid.sum())
        self.count += int(valid.sum())

    @property
    def rms(self) -> float:
        """Relative to the spread; of values that are all the same, as it is."""
        return float(np.sqrt(self.errors / (self.spread or self.count)))


def rms_by_name(pairs: Iterable[Pair]) -> dict[str, float]:
    """Root mean square errors of floating-point outputs, relative to the reference's spread."""
    sums: dict[str, _Sums] = {}
    for pair in pairs:
        if pair.reference.dtype.kind in "fV" and pair.reference.shape == pair.candidate.shape:
            sums.setdefault(pair.name, _Sums()).add(pair)
    return {name: each.rms for name, each in sums.items() if each.count}
