"""The kernel by itself, beside the multiply-adds of the core that it runs on.

What is timed is `native/core.cpp`, compiled here: one new token of DeepSeek's widths on a buffer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mla_opt.kernels import cpu_tiers, kernel_library
from mla_opt.kernels.building.build import HOME, compiler
from tests.benchmarks import models
from tests.benchmarks.figures import Figure
from tests.benchmarks.sheet import Sheet, number

NATIVE = Path(__file__).with_name("native")
SOURCES = ("core.cpp", "peak.cpp", "pool.cpp")
QUANTIZED_ROWS = HOME / "cpu" / "quantized_rows.cpp"
OPTIONS = ("-std=c++17", "-O2", "-pthread")
THREADS = 2
#: Bytes of a latent row.
ROW_BYTES = {"float32": 2304, "float16": 1152, "bfloat16": 1152, "int8": 656, "fp8": 656}
#: Share of the core's rate wanted of one thread, in percent, by type and heads; and of two threads
#: how many times one.
TARGETS = {
    ("float32", 16): 70.0,
    ("float32", 128): 85.0,
    ("bfloat16", 16): 70.0,
    ("bfloat16", 128): 80.0,
}
THREADS_TARGET = 1.85
#: The tier whose bfloat16 products the targets are about.
BFLOAT16_TIER = "avx512bf16"
#: The tier of tiles, which float32 rows use for more query rows than these.
TILES_TIER, VECTOR_ROWS = "amx", 16


@dataclasses.dataclass(frozen=True)
class CoreCase:
    """One problem of the kernel, on a tier of it."""

    dtype: str
    heads: int
    keys: int
    tier: str
    #: Whether the targets are about it.
    promised: bool

    @property
    def name(self) -> str:
        """What tables and JSON call it."""
        return f"{self.dtype}, {self.heads} heads, {self.keys >> 10}k keys, {self.tier}"


@dataclasses.dataclass(frozen=True)
class CoreTiming:
    """Rounds of one case: seconds of a call, and operations a second of multiply-adds alone."""

    case: CoreCase
    operations: float
    seconds_on_one: tuple[float, ...]
    seconds_on_all: tuple[float, ...]
    rate_of_one: tuple[float, ...]
    rate_of_all: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """Percent of the core's own rate in the same round that one thread reaches."""
        rounds = zip(self.seconds_on_one, self.rate_of_one)
        return tuple(100 * self.operations / seconds / rate for seconds, rate in rounds)

    @property
    def best(self) -> float:
        """Seconds of the fastest call on one thread."""
        return min(self.seconds_on_one)

    @property
    def median(self) -> float:
        """Seconds of the median round on one thread."""
        return statistics.median(self.seconds_on_one)

    @property
    def scaling(self) -> float:
        """How many times faster all threads are than one."""
        return self.best / min(self.seconds_on_all)

    @property
    def rate_scaling(self) -> float:
        """The same of multiply-adds alone: what the machine's cores leave each other."""
        return statistics.median(self.rate_of_all) / statistics.median(self.rate_of_one)

    @property
    def gigabytes(self) -> float:
        """10^9 bytes of rows a second on one thread."""
        return self.case.keys * ROW_BYTES[self.case.dtype] / self.best / 1e9

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready copy."""
        return dataclasses.asdict(self)


def cases(heads: Sequence[int], keys: Sequence[int]) -> list[CoreCase]:
    """Every case that this machine has a tier for.

    Promised is what runs where nobody names a tier; of bfloat16 what its vectors do, as tiles wait
    for the memory.
    """
    tiers = cpu_tiers()
    # Tiers for bfloat16 leave float32 rows to the best one for those.
    single = next(tier for tier in tiers if tier not in (TILES_TIER, BFLOAT16_TIER))

    def of(dtype: str, tier: str, promised: Callable[[int], bool]) -> list[CoreCase]:
        return [CoreCase(dtype, h, k, tier, promised(h)) for h in heads for k in keys]

    on_tiles = TILES_TIER in tiers
    found = of("float32", single, lambda h: not on_tiles or h <= VECTOR_ROWS)
    if on_tiles:
        found += [c for c in of("float32", TILES_TIER, lambda _: True) if c.heads > VECTOR_ROWS]
    found += of("float16", TILES_TIER if on_tiles else single, lambda _: False)
    for tier in (TILES_TIER, BFLOAT16_TIER):
        if tier in tiers:
            found += of("bfloat16", tier, lambda _, tier=tier: tier == BFLOAT16_TIER)
    for dtype in ("int8", "fp8"):
        found += of(dtype, tiers[0], lambda _: False)
    return found


def program() -> Path:
    """Compile what is timed; once for each version of it."""
    digest = hashlib.sha256(" ".join(OPTIONS).encode())
    for path in (*sorted(NATIVE.iterdir()), QUANTIZED_ROWS):
        digest.update(path.read_bytes())
    target = models.cache_folder() / f"core-{digest.hexdigest()[:12]}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
        sources = [*(str(NATIVE / name) for name in SOURCES), str(QUANTIZED_ROWS)]
        command = [*compiler(), *OPTIONS, *sources, "-ldl", "-o", str(partial)]
        models.run(command, "the program that times the kernel")
        partial.rename(target)
    return target


def measure(case: CoreCase, rounds: int) -> CoreTiming:
    """Run one case."""
    words = [case.dtype, case.heads, case.keys, THREADS, rounds]
    command = [str(program()), str(kernel_library()), *map(str, words)]
    environment = {**os.environ, "MLA_OPT_CPU_TIER": case.tier}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise models.BuildError(f"{case.name}: {done.stderr.strip()[: models.LONGEST]}")
    said = json.loads(done.stdout)
    return CoreTiming(
        case,
        said["operations"],
        *(
            tuple(said[key])
            for key in ("seconds_on_one", "seconds_on_all", "rate_of_one", "rate_of_all")
        ),
    )


def figures(timing: CoreTiming, promised: bool) -> list[Figure]:
    """The share of the core's rate, and what a second thread adds."""
    case = timing.case
    wanted = promised and case.promised
    share = TARGETS.get((case.dtype, case.heads)) if wanted else None
    return [
        Figure(
            f"kernel, {case.name}: share of the core's multiply-adds",
            max(timing.shares),
            statistics.median(timing.shares),
            share,
            unit="%",
        ),
        Figure(
            f"kernel, {case.name}: two threads over one",
            timing.scaling,
            timing.median / statistics.median(timing.seconds_on_all),
            THREADS_TARGET if wanted else None,
        ),
    ]


def sheet(timings: Sequence[CoreTiming]) -> Sheet:
    """All cases."""
    rows = tuple(
        (
            timing.case.name,
            number(1e3 * timing.best),
            number(timing.operations / timing.best / 1e9),
            number(statistics.median(timing.rate_of_one) / 1e9),
            f"{max(timing.shares):.1f}",
            f"{statistics.median(timing.shares):.1f}",
            number(timing.gigabytes),
            number(timing.scaling),
            number(timing.rate_scaling),
        )
        for timing in timings
    )
    columns = (
        "one new token, 512 + 64",
        "ms",
        "GFLOP/s",
        "multiply-adds",
        "share %",
        "by median %",
        "rows GB/s",
        "2 threads x",
        "multiply-adds x",
    )
    return Sheet("The kernel alone (one thread, processor time; two threads, time)", columns, rows)
