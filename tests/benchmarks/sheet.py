"""A table that can be shown in a terminal and written as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rich.table import Table

from tests.benchmarks.figures import Figure, Timings
from tests.benchmarks.optimize_time import Depth


@dataclasses.dataclass(frozen=True)
class Sheet:
    """Rows of text under a title; the first column is words, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """For a README."""
        rules = ("---", *("---:" for _ in self.columns[1:]))
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, rules, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, ""])


def number(value: float) -> str:
    """Three significant digits, and no exponent."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


def timing_sheet(title: str, timings: Timings) -> Sheet:
    """One case: every variant's steps and memory."""
    rows = tuple(
        (
            name,
            number(timing.best),
            number(timing.median),
            str(len(timing.samples_ms)),
            number(timing.loaded_mb),
            number(timing.beyond_mb),
            "-" if timing.error is None else f"{timing.error:.0e}",
        )
        for name, timing in timings.items()
    )
    columns = ("variant", "min ms", "median ms", "n", "loaded MB", "peak beyond MB", "logits error")
    return Sheet(title, columns, rows)


def depth_sheet(depths: Sequence[Depth]) -> Sheet:
    """Time to optimize by depth."""
    rows = tuple(
        (
            str(depth.layers),
            number(depth.file_mb),
            number(depth.plain.seconds),
            number(depth.optimized.seconds),
            number(depth.extra),
            number(1000 * depth.extra / depth.layers),
            number(depth.optimized.cpu_seconds - depth.plain.cpu_seconds),
            number(depth.optimized.peak_mb),
        )
        for depth in depths
    )
    columns = (
        "layers",
        "file MB",
        "read+write s",
        "with optimize s",
        "extra s",
        "extra ms/layer",
        "extra CPU s",
        "peak MB",
    )
    return Sheet("Time to optimize, without verification", columns, rows)


def figure_sheet(figures: Sequence[Figure]) -> Sheet:
    """The summary: every figure beside its target."""
    return Sheet(
        "Figures",
        ("figure", "measured (min)", "by medians", "target", "verdict"),
        tuple(_figure_row(figure) for figure in figures),
    )


def _figure_row(figure: Figure) -> tuple[str, ...]:
    def show(value: float | None) -> str:
        return "-" if value is None else f"{number(value)} {figure.unit}"

    bound = "" if figure.target is None else "≥ " if figure.at_least else "≤ "
    verdict = {True: "met", False: "not met", None: "-"}[figure.met]
    return (
        figure.what,
        show(figure.value),
        show(figure.by_median),
        bound + show(figure.target),
        verdict,
    )
