"""A figure: one number that mla-opt claims, what was wanted of it, and whether it was reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mla_opt.benchmarking.machine import Machine
from mla_opt.benchmarking.turns import Timing
from tests.benchmarks.dims import Dims
from tests.benchmarks.runner import Case

#: Variants, by what tables call them. The first is what the others are compared with.
ORIGINAL, CLEAN, CLEAN_BY_HAND = "original", "clean", "clean by hand"
OPTIMIZED, ABSORBED_BY_HAND = "optimized", "absorbed by hand"
KERNEL, KERNEL_ABSORBED, KERNEL_EXPANDED = "kernel", "kernel, absorbed", "kernel, expanded"
STATIC, STATIC_BODY = "static cache, kernel", "static cache, function body"
ORIGINAL_457, OPTIMIZED_457 = "original 4.57", "optimized 4.57"

#: Times the better form that a model holding both may take.
SWEEP_TARGET = 1.1

Timings = Mapping[str, Timing]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One line of the summary.

    Attributes:
        what: The claim in words.
        value: The number measured; for times, the ratio of the fastest steps.
        by_median: The same ratio of medians, where there is one.
        target: What the number should reach, or None where nothing was promised.
        at_least: Whether more is better.
        unit: `x` for a ratio, else what it counts.
    """

    what: str
    value: float
    by_median: float | None = None
    target: float | None = None
    at_least: bool = True
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return {**dataclasses.asdict(self), "met": self.met}


def cleanest(timings: Timings) -> str | None:
    """The faster of the two clean re-expanding graphs: the harder one to beat."""
    clean = [name for name in (CLEAN, CLEAN_BY_HAND) if name in timings]
    return min(clean, key=lambda name: timings[name].best) if clean else None


def speedup(
    timings: Timings, slow: str | None, fast: str | None, what: str, target: float | None = None
) -> list[Figure]:
    """How many times faster `fast` is than `slow`; nothing when one of them was not measured."""
    if slow is None or fast is None or slow not in timings or fast not in timings:
        return []
    a, b = timings[slow], timings[fast]
    return [Figure(what, a.best / b.best, a.median / b.median, target)]


def decode_figures(case: Case, timings: Timings, targets: Mapping[str, float]) -> list[Figure]:
    """The whole gain of one decode step, and its two parts apart."""
    clean = cleanest(timings)
    return [
        *speedup(timings, ORIGINAL, OPTIMIZED, f"{case.name}: whole gain", targets.get("whole")),
        *speedup(timings, ORIGINAL, clean, f"{case.name}: part 1, exporter's graph made clean"),
        *speedup(
            timings, clean, OPTIMIZED, f"{case.name}: part 2, absorption", targets.get("absorption")
        ),
        *speedup(
            timings,
            ORIGINAL_457,
            OPTIMIZED_457 if OPTIMIZED_457 in timings else OPTIMIZED,
            f"{case.name}: against the expanded cache of 4.57",
            targets.get("expanded"),
        ),
    ]


def ceiling_figures(case: Case, timings: Timings, dims: Dims, machine: Machine) -> list[Figure]:
    """The gains of a step that only reads its weights and latent rows, once, as fast as can be."""
    numbers = dims.step_weights + dims.layers * case.past * dims.latent_width
    least = 4.0 * numbers / machine.read_gbps / 1e6
    gains = {
        "whole gain": ORIGINAL,
        "part 2, absorption": cleanest(timings),
        "against the expanded cache of 4.57": ORIGINAL_457,
    }
    found = [
        Figure(f"{case.name}: one read of weights and rows, at the read rate", least, unit="ms")
    ]
    for what, slow in gains.items():
        if slow is not None and slow in timings:
            most = timings[slow].best / least
            found.append(Figure(f"{case.name}: {what}, were it no more than that", most))
    return found


def sweep_figures(case: Case, timings: Timings, promised: bool) -> list[Figure]:
    """A number of new tokens: against the original, and against the better of the two forms."""
    if not {ORIGINAL, KERNEL, KERNEL_ABSORBED} <= set(timings):
        return []
    forms = [n for n in (KERNEL_ABSORBED, KERNEL_EXPANDED, CLEAN, CLEAN_BY_HAND) if n in timings]
    better = min(forms, key=lambda name: timings[name].best)
    ours, other = timings[KERNEL], timings[better]
    target = {"target": SWEEP_TARGET, "at_least": False} if promised else {"at_least": False}
    return [
        *speedup(timings, ORIGINAL, KERNEL, f"{case.name}: whole gain", 1.0 if promised else None),
        Figure(
            f"{case.name}: time over that of the better form ({better})",
            ours.best / other.best,
            ours.median / other.median,
            **target,
        ),
    ]


def static_figures(
    case: Case, timings: Timings, dims: Dims, machine: Machine, most: float | None
) -> list[Figure]:
    """A prompt into a static cache with the kernel: against the limit, and the original."""
    ours = timings[STATIC]
    limit = dims.prompt_operations(case.new, case.past) / machine.gemm_gflops / 1e6
    return [
        Figure(
            f"{case.name}, static: of the limit",
            ours.best / limit,
            ours.median / limit,
            most,
            at_least=False,
        ),
        *speedup(timings, ORIGINAL, STATIC, f"{case.name}, static: whole gain"),
    ]


def body_figures(case: Case, timings: Timings, least: float | None) -> list[Figure]:
    """A prompt through function bodies alone: speed and memory, the original's over theirs."""
    found = []
    for name in (OPTIMIZED, STATIC_BODY):
        if ORIGINAL in timings and name in timings:
            what = f"{case.name}: function body, {'keep' if name == OPTIMIZED else 'static'}"
            ratio = timings[ORIGINAL].beyond_mb / max(timings[name].beyond_mb, 1e-9)
            found += speedup(timings, ORIGINAL, name, f"{what}: gain", least)
            found.append(Figure(f"{what}: times less memory", ratio, None, least))
    return found


def memory_figures(case: Case, timings: Timings, target: float | None) -> list[Figure]:
    """Peak memory beyond the loaded model, original over optimized."""
    if ORIGINAL not in timings or OPTIMIZED not in timings:
        return []
    ratio = timings[ORIGINAL].beyond_mb / max(timings[OPTIMIZED].beyond_mb, 1e-9)
    return [Figure(f"{case.name}: times less beyond the loaded model", ratio, None, target)]


def core_figures(
    dims: Dims, machine: Machine, short: tuple[int, Timings], long: tuple[int, Timings]
) -> list[Figure]:
    """What each 1000 tokens of context cost, beside what the machine's arithmetic would allow."""
    (near, first), (far, second) = short, long
    if OPTIMIZED not in first or OPTIMIZED not in second:
        return []
    slope = (second[OPTIMIZED].best - first[OPTIMIZED].best) / (far - near) * 1000
    flops = 2.0 * dims.layers * dims.num_heads * (dims.kv_lora_rank + dims.latent_width)
    rows = 4.0 * dims.layers * dims.latent_width
    arithmetic = flops * 1000 / machine.gemm_gflops / 1e6
    reading = rows * 1000 / machine.read_gbps / 1e6
    return [
        Figure("decode: each 1000 tokens of context", slope, unit="ms"),
        Figure("decode: the same at the machine's matmul rate", arithmetic, unit="ms"),
        Figure("decode: the same at the machine's read rate", reading, unit="ms"),
        Figure(
            "decode: attention core, share of the limit",
            100 * max(arithmetic, reading) / slope,
            unit="%",
        ),
    ]


def summary(figures: Sequence[Figure]) -> tuple[int, int]:
    """How many targets were met, and how many there were."""
    verdicts = [figure.met for figure in figures if figure.met is not None]
    return sum(verdicts), len(verdicts)
