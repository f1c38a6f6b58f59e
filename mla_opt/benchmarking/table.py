"""A run of the benchmark as tables for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mla_opt.benchmarking.limits import Rates
from mla_opt.benchmarking.report import Agreement, BenchReport, Measurement

WRONG = "WRONG"
#: Share of the machine that others may use before it is told.
QUIET = 0.05


def bench_tables(report: BenchReport) -> Iterator[RenderableType]:
    """Yield the tables and the lines below them, in reading order."""
    for (batch, query), members in _by_kind_of_step(report.measurements).items():
        yield _steps_table(report, batch, query, members)
    yield _participants_table(report)
    yield Text(_machine(report))
    for peer in report.missing:
        install = f"; {peer.install}" if peer.install else ""
        yield Text(f"not measured: {peer.name}: {peer.reason}{install}")
    for one in report.measurements:
        if one.agreement.problem is not None:
            where = f"batch {one.batch}, {one.query} on {one.context}"
            yield Text(f"{one.participant}, {where}: {one.agreement.problem}")
    if report.others_busy > QUIET * report.machine.cores:
        cores = f"{report.others_busy:.1f} of {report.machine.cores} cores"
        yield Text(f"disturbed: other processes kept {cores} busy, which makes times longer")
    yield from (Text(f"note: {note}") for note in report.notes)


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def length(tokens: int) -> str:
    """``8k`` for 8192; other numbers as they are."""
    return f"{tokens >> 10}k" if tokens and tokens % 1024 == 0 else str(tokens)


def _by_kind_of_step(
    measurements: Sequence[Measurement],
) -> dict[tuple[int, int], list[Measurement]]:
    groups: dict[tuple[int, int], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.batch, one.query), []).append(one)
    return groups


def _steps_table(
    report: BenchReport, batch: int, query: int, members: Sequence[Measurement]
) -> Table:
    what = "one new token" if query == 1 else f"{query} new tokens"
    title = f"{what}, batch {batch}, {report.machine.threads} threads"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("context")
    table.add_column("", overflow="fold")
    for heading in ("min ms", "median", "n", "faster", "MB beyond", "error", "attention"):
        table.add_column(heading, justify="right")
    previous = members[0].context
    for one in members:
        if one.context != previous:
            table.add_section()
            previous = one.context
        table.add_row(*map(Text, _cells(one)))
    return table


def _cells(one: Measurement) -> tuple[str, ...]:
    return (
        length(one.context),
        one.participant,
        number(one.min_ms),
        number(one.median_ms),
        str(len(one.samples_ms)),
        f"{number(one.faster)}x",
        number(one.beyond_mb),
        _error(one.agreement),
        _rates(one.attention),
    )


def _error(agreement: Agreement) -> str:
    if agreement.compared == "not":
        return "-"
    error = "?" if agreement.error is None else f"{agreement.error:.0e}"
    return f"{error} {WRONG}" if agreement.wrong else error


def _rates(reached: Rates | None) -> str:
    if reached is None:
        return "-"
    arithmetic, reading = reached.share_of_arithmetic, reached.share_of_bandwidth
    return f"{100 * arithmetic:.0f}% FMA, {100 * reading:.0f}% read"


def _participants_table(report: BenchReport) -> Table:
    table = Table(title="What each does", title_justify="left", header_style="bold")
    table.add_column("", overflow="fold")
    table.add_column("inside", overflow="fold")
    for who in report.participants:
        table.add_row(Text(who.name), Text(who.inside))
    return table


def _machine(report: BenchReport) -> str:
    rated = report.machine
    return (
        f"{rated.cpu}, {rated.cores} cores, {rated.memory_gb} GB; {rated.system}; ONNX Runtime"
        f" {rated.onnxruntime}, {rated.threads} threads; in this run {rated.gemm_gflops:.0f}"
        f" GFLOP/s ({rated.gemm_by}) and {rated.read_gbps:.0f} GB/s read."
        " attention: what each further token of context costs, as a share of these two."
    )
