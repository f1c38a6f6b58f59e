"""A run of the benchmark as a record of benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.benchmarks.record import Record, versions
from tests.gpu import summary
from tests.gpu.benchmark import Rates, Row

PACKAGES = ("torch", "triton", "sgl-flash-mla", "flash-mla", "flashinfer-python")


def record(
    command: str, kernels: str, rows: Sequence[Row], rates: Rates, absent: Iterable[str]
) -> Record:
    """A table of all points, and one of the targets; `kernels`: what ours are compiled for."""
    told = [f"kernels for {kernels}", *versions(PACKAGES)]
    conditions = f"{', '.join(told)}; {summary.ceilings(rates)}."
    missing = ", ".join(absent)
    tables = [summary.short_table(rows, rates), summary.verdict_table(rows, rates)]
    lines = [f"Not there: {missing}." if missing else "", *map("\n".join, tables)]
    return Record.of("one decode step", command, conditions, lines)
