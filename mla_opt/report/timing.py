"""Measured decode steps as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mla_opt.report.units import duration


def timing_table(rows: Sequence[tuple[int, float, float]]) -> Table:
    """Return one line for each ``(past tokens, seconds before, seconds after)``."""
    table = Table(header_style="bold")
    for heading in ("past tokens", "before", "after", "faster"):
        table.add_column(heading, justify="right")
    for past, before, after in rows:
        table.add_row(str(past), duration(before), duration(after), f"{before / after:.2f}x")
    return table
