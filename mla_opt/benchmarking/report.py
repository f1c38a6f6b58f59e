"""What one run of `mla-opt bench` found. Frozen, and JSON.

The JSON is versioned: ``schema_version`` grows whenever a field is added, removed or changes its
meaning, and ``bench.schema.json`` beside this file describes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from mla_opt.benchmarking.limits import Rates
from mla_opt.benchmarking.machine import Machine
from mla_opt.report.plain import from_plain, to_plain
from mla_opt.version import tool_version

BENCH_SCHEMA_VERSION = 1

Kind = Literal["original", "optimized", "peer"]
Compared = Literal["same past", "prompt", "not"]


@dataclass(frozen=True, slots=True)
class ParticipantReport:
    """Something that was timed, and what it does inside, in one line."""

    name: str
    kind: Kind
    inside: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far outputs are from the original's, relative to their spread.

    ``compared`` says on what: a step on the same made-up past, or a prompt from an empty cache.
    ``output`` names the output that is furthest off. ``problem`` says why there is no number.
    """

    compared: Compared
    error: float | None
    tolerance: float | None
    output: str | None = None
    problem: str | None = None

    @property
    def wrong(self) -> bool:
        """Whether the outputs are known to differ."""
        if self.compared == "not":
            return False
        return self.error is None or self.tolerance is None or self.error > self.tolerance


@dataclass(frozen=True, slots=True)
class Measurement:
    """One participant at one point.

    Memory is in MB of 2^20 bytes: resident once the model was loaded, and the most beyond that,
    caches included. ``faster`` is the original's time over this one's. ``attention`` is known
    between this context and the shortest one of the same batch and query.
    """

    participant: str
    context: int
    batch: int
    query: int
    min_ms: float
    median_ms: float
    samples_ms: tuple[float, ...]
    loaded_mb: float
    beyond_mb: float
    faster: float
    faster_by_median: float
    agreement: Agreement
    attention: Rates | None = None


@dataclass(frozen=True, slots=True)
class MissingPeer:
    """A peer that was not timed: why not, and what would install it."""

    name: str
    reason: str
    install: str


@dataclass(frozen=True, slots=True)
class BenchReport:
    """One run: the machine, who took part, and every measurement.

    ``others_busy`` counts the cores that other processes kept busy meanwhile, on average.
    """

    original: str
    optimized: str
    machine: Machine
    participants: tuple[ParticipantReport, ...]
    measurements: tuple[Measurement, ...]
    missing: tuple[MissingPeer, ...] = ()
    others_busy: float = 0.0
    notes: tuple[str, ...] = ()
    schema_version: int = BENCH_SCHEMA_VERSION
    tool: str = "mla-opt"
    tool_version: str = ""

    def to_json(self) -> str:
        """Return the report as JSON text."""
        plain = to_plain(self)
        plain["tool_version"] = self.tool_version or tool_version()
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> BenchReport:
        """Read what `to_json` wrote. Raises `ValueError` where it is something else."""
        return from_plain(cls, json.loads(text))

    @property
    def wrong(self) -> tuple[Measurement, ...]:
        """Measurements of the two models whose outputs differ from the original's."""
        ours = {p.name for p in self.participants if p.kind == "optimized"}
        return tuple(m for m in self.measurements if m.participant in ours and m.agreement.wrong)
