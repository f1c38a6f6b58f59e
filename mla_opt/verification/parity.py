"""How far two runs are apart, and whether that is close enough.

An error counts relative to the spread (standard deviation) of what the original said in that call:
logits of a wide model and a latent cache have no scale in common. The tolerance is the larger of a
floor, which depends on the model's precision, and ten times the noise floor: how far the original
is from itself when ONNX Runtime's graph optimizations are switched off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mla_opt.verification.alignment import Aligner, Kind, Pair
from mla_opt.verification.oracle import Run
from mla_opt.verification.scenarios import Scenario

Array = npt.NDArray[Any]

#: Least tolerance by bytes of the model's weights' type, relative to the spread: what rounding
#: makes of the deepest released model, 61 layers of DeepSeek-V3, counted as in `matching.rounding`.
#: float32: a layer's sums one after the other have about 55 000 terms (7168 + 1536 + 192 + 512 +
#: 16384 + 7168 + 18432, and 4096 tokens), and 2.5 2^-24 sqrt(61 * 55 000 / 2) = 2e-4.
#: 16 bits: runtimes sum in float32, and round what each of about 28 operators of a layer makes:
#: 2.5 2^-11 sqrt(61 * 28) = 5e-2. Two layers were seen to be 1e-2 from themselves.
#: float64: the sums come to 4e-13; 1e-9 leaves room for functions, such as exp, that libraries make
#: with fewer digits than the type has, and is far below what anything in float32 comes to.
FLOORS = {2: 5e-2, 4: 2e-4, 8: 1e-9}
#: What noise never excuses. One head of 128 that is wrong changes an output by 1 / sqrt(128) = 9e-2
#: of its spread, if all weigh alike: float32 stays ten times below that. 16 bits cannot, whose
#: floor is not far from it: there it is the certificates that look at every head by itself. Noise
#: of float64 is that of parts in float32, 1e-7, times ten.
CEILINGS = {2: 2e-1, 4: 1e-2, 8: 1e-6}
#: The noise is one pair of runs, each of which may be off by as much; the largest of many such
#: differences is within 2.5 of the normal one (`matching.rounding`), for either run and for the
#: other way of computing it: 2.5 * 2 * 2.
NOISE_FACTOR = 10.0
#: The same for float32 models whose caches were rounded, which is done once a layer. With 61 layers
#: that is 2.5 u sqrt(61), twice as much where a softmax sharpens it: 2e-2 for float16 and 1.5e-1
#: for bfloat16. Two layers were seen to be 4e-3 and 4.5e-2 from themselves. Codes of 8 bits are not
#: rounded relative to each number: logits of small exports were 1.5e-2 (int8) and 6e-2 (float8)
#: off, and sqrt(61 / 2) times that, twice for the softmax, is 1.7e-1 and 6.6e-1.
ROUNDED_FLOORS = {"float16": 2e-2, "bfloat16": 1.5e-1, "int8": 2e-1, "float8_e4m3fn": 8e-1}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What error is tolerated in each output, relative to its spread.

    ``noise`` holds the noise floor of each output, by name. Where there is a ``narrower`` one, that
    is for all outputs but the ``wide`` ones.
    """

    floor: float
    ceiling: float
    noise: Mapping[str, float] = field(default_factory=dict)
    narrower: Tolerance | None = None
    wide: frozenset[str] = frozenset()

    def of(self, name: str) -> float:
        """Tolerance for the output ``name``."""
        if self.narrower is not None and name not in self.wide:
            return self.narrower.of(name)
        return min(max(self.floor, NOISE_FACTOR * self.noise.get(name, 0.0)), self.ceiling)

    def only_for(self, names: frozenset[str], others: Tolerance) -> Tolerance:
        """This tolerance for the outputs ``names``, and that of ``others`` for all else."""
        return self if self.floor <= others.floor else replace(self, narrower=others, wide=names)

    @classmethod
    def for_bytes(cls, size: int, noise: Mapping[str, float]) -> Tolerance:
        """Tolerance for a model whose weights take ``size`` bytes each."""
        return cls(FLOORS[size], CEILINGS[size], noise)

    @classmethod
    def for_rounded(cls, cache_type: str, noise: Mapping[str, float]) -> Tolerance:
        """Tolerance for a model whose caches were rounded to ``cache_type``."""
        floor = ROUNDED_FLOORS[cache_type]
        return cls(floor, max(floor, CEILINGS[2]), noise)

    @classmethod
    def fixed(cls, value: float, noise: Mapping[str, float]) -> Tolerance:
        """Tolerate ``value`` everywhere; the noise is only reported."""
        return cls(value, value, noise)


@dataclass(frozen=True, slots=True)
class OutputParity:
    """How far one output or state is from the original's.

    Attributes:
        max_abs: largest absolute error in valid elements.
        relative: the same, divided by the spread of the original's values in that call.
        noise: ``relative`` of the original against itself, unoptimized.
        argmax_agreement: share of rows in which the largest element is the same one; ``None``
            where the last axis is no choice.
        elements: how many elements were compared.
        new_nonfinite: valid elements that are NaN or infinite in the optimized model only.
        problem: why there is nothing to compare, if so.
    """

    name: str
    kind: Kind
    dtype: str
    max_abs: float
    relative: float
    noise: float
    tolerance: float
    argmax_agreement: float | None
    elements: int
    new_nonfinite: int
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the error is tolerated and nothing new is NaN or infinite."""
        return self.problem is None and not self.new_nonfinite and self.relative <= self.tolerance

    def merged(self, other: OutputParity) -> OutputParity:
        """Return the worse of both in every respect."""
        agreements = [a for a in (self.argmax_agreement, other.argmax_agreement) if a is not None]
        return replace(
            self,
            max_abs=max(self.max_abs, other.max_abs),
            relative=max(self.relative, other.relative),
            argmax_agreement=min(agreements, default=None),
            elements=self.elements + other.elements,
            new_nonfinite=self.new_nonfinite + other.new_nonfinite,
            problem=self.problem or other.problem,
        )

    def as_dict(self) -> dict[str, object]:
        """Return the fields and the verdict, for JSON; what is not finite becomes null."""
        return {k: _finite(v) for k, v in asdict(self).items()} | {"passed": self.passed}


@dataclass(frozen=True, slots=True)
class ScenarioParity:
    """How one scenario went. ``skipped`` says why the original could not run it."""

    scenario: Scenario
    outputs: tuple[OutputParity, ...] = ()
    error: str | None = None
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it ran and every output is close, or the original itself cannot run it."""
        if self.skipped is not None:
            return True
        return self.error is None and bool(self.outputs) and all(o.passed for o in self.outputs)

    def as_dict(self) -> dict[str, object]:
        """Return the fields and the verdict, for JSON."""
        outputs = [output.as_dict() for output in self.outputs]
        verdict = {"error": self.error, "skipped": self.skipped, "passed": self.passed}
        return {**asdict(self.scenario), "outputs": outputs, **verdict}


def compare(
    aligner: Aligner, reference: Run, candidate: Run, tolerance: Tolerance
) -> ScenarioParity:
    """Compare two runs of one scenario."""
    if reference.error is not None:
        return ScenarioParity(reference.scenario, skipped=reference.error)
    pairs = aligner.pairs(reference, candidate)
    outputs = worst_by_name(measure(pair, tolerance) for pair in pairs)
    return ScenarioParity(reference.scenario, outputs, error=candidate.error)


def worst_by_name(outputs: Iterable[OutputParity]) -> tuple[OutputParity, ...]:
    """Merge what is said of one output in several calls or scenarios."""
    merged: dict[str, OutputParity] = {}
    for output in outputs:
        known = merged.get(output.name)
        merged[output.name] = output if known is None else known.merged(output)
    return tuple(merged.values())


def measure(pair: Pair, tolerance: Tolerance) -> OutputParity:
    """Measure one pair of tensors."""
    if pair.reference.shape != pair.candidate.shape:
        shapes = f"{pair.reference.shape} in the original, {pair.candidate.shape} in the optimized"
        return _parity(pair, tolerance, problem=f"shapes differ: {shapes}")
    if pair.reference.dtype.kind not in "fV":
        return _exact(pair, tolerance)
    reference, candidate = (x.astype(np.float64) for x in (pair.reference, pair.candidate))
    valid = np.broadcast_to(pair.valid, reference.shape)
    known = valid & np.isfinite(reference)
    compared = known & np.isfinite(candidate)
    errors = np.abs(reference[compared] - candidate[compared])
    max_abs = float(errors.max(initial=0.0))
    if valid.any() and not known.any():
        return _parity(pair, tolerance, problem="the original is NaN or infinite throughout")
    return _parity(
        pair,
        tolerance,
        max_abs=max_abs,
        relative=max_abs / _spread(reference[known]),
        argmax_agreement=_argmax_agreement(pair, reference, candidate, known),
        elements=int(compared.sum()),
        new_nonfinite=int((known & ~compared).sum()),
    )


def _parity(pair: Pair, tolerance: Tolerance, **measured: Any) -> OutputParity:
    facts: dict[str, Any] = {
        "max_abs": 0.0,
        "relative": 0.0,
        "argmax_agreement": None,
        "elements": 0,
        "new_nonfinite": 0,
    }
    return OutputParity(
        name=pair.name,
        kind=pair.kind,
        dtype=str(pair.reference.dtype),
        noise=tolerance.noise.get(pair.name, 0.0),
        tolerance=tolerance.of(pair.name),
        **(facts | measured),
    )


def _exact(pair: Pair, tolerance: Tolerance) -> OutputParity:
    """Measure integers and booleans: the share of elements that differ, none of which may."""
    valid = np.broadcast_to(pair.valid, pair.reference.shape)
    differs = (pair.reference != pair.candidate) & valid
    share = float(differs.sum() / max(valid.sum(), 1))
    result = _parity(pair, tolerance, max_abs=share, relative=share, elements=int(valid.sum()))
    return replace(result, tolerance=0.0)


def _spread(values: Array) -> float:
    """Standard deviation; of values that are all the same, their size; of zeros, 1."""
    if not values.size:
        return 1.0
    deviation, largest = float(values.std()), float(np.abs(values).max())
    return deviation if deviation > 1e-6 * largest else largest or 1.0


def _argmax_agreement(
    pair: Pair, reference: Array, candidate: Array, known: npt.NDArray[np.bool_]
) -> float | None:
    if pair.kind == "state" or reference.ndim < 2 or reference.shape[-1] < 2:
        return None
    rows = known.all(axis=-1)
    if not rows.any():
        return None
    agree = reference[rows].argmax(-1) == candidate[rows].argmax(-1)
    return float(agree.mean())


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
