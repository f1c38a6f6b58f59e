"""Step time against context as a picture. Needs matplotlib, which is asked for only here."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import IO, Any

from mla_opt.benchmarking.report import BenchReport, Measurement
from mla_opt.benchmarking.table import length
from mla_opt.errors import InputError

#: Inches of one panel, and dots per inch.
WIDTH, HEIGHT, DOTS = 5.2, 4.2, 150


def require_matplotlib() -> None:
    """Raise `InputError` where matplotlib is missing, with what installs it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib, which is not installed: pip install matplotlib")


def plot(report: BenchReport, stream: IO[bytes]) -> None:
    """Draw the fastest steps by context as PNG, both axes logarithmic, a panel a batch and query.

    Raises:
        InputError: matplotlib is missing, or there is nothing to draw.
    """
    require_matplotlib()
    # The object interface: pyplot would keep the figure and look for a display.
    from matplotlib.figure import Figure

    drawn = [m for m in report.measurements if m.context > 0]
    if not drawn:
        raise InputError("--plot needs a --context above 0: the axis is logarithmic")
    panels = sorted({(m.batch, m.query) for m in drawn})
    figure = Figure(figsize=(WIDTH * len(panels), HEIGHT), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, (batch, query) in zip(axes, panels, strict=True):
        members = [m for m in drawn if (m.batch, m.query) == (batch, query)]
        _panel(ax, members, [who.name for who in report.participants])
        ax.set_title(f"batch {batch}, {query} new token{'s' if query > 1 else ''}", fontsize=10)
    axes[0].set_ylabel("milliseconds a step, fastest")
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{report.machine.cpu}, {report.machine.threads} threads", fontsize=8)
    figure.savefig(stream, format="png", dpi=DOTS)


def _panel(ax: Any, members: Sequence[Measurement], names: Sequence[str]) -> None:
    for name in names:
        line = sorted((m.context, m.min_ms) for m in members if m.participant == name)
        if line:
            ax.plot(*zip(*line, strict=True), marker="o", label=name)
    contexts = sorted({m.context for m in members})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(contexts, [length(context) for context in contexts])
    ax.set_xlabel("tokens of context")
    ax.grid(True, which="both", alpha=0.25)
