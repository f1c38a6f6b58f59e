"""What ``optimize`` tells of a run, of a file and of a folder alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from mla_opt.cli._console import Activity, Screen
from mla_opt.cli._settings import Settings

if TYPE_CHECKING:
    from mla_opt.events import Event
    from mla_opt.report import OptimizationReport


def observer_of(settings: Settings, activity: Activity) -> Callable[[Event], None]:
    """What is told of passes and runs: progress, and with --print-between-passes the graph."""
    if not settings.print_between_passes:
        return activity.observe

    def observe(event: Event) -> None:
        from mla_opt.events import PassFinished

        activity.observe(event)
        if isinstance(event, PassFinished):
            print(f"// after {event.name}\n{event.graph_text()}\n")

    return observe


def complete(report: OptimizationReport, settings: Settings) -> OptimizationReport:
    """Add what only the command line knows."""
    from mla_opt.report.plain import to_plain

    return replace(report, options=to_plain({**report.options, **settings.api_options()}))


def show_report(settings: Settings, report: OptimizationReport, screen: Screen) -> None:
    """Show the tables of a report."""
    from mla_opt.report.terminal import optimization_tables

    timings = settings.time_passes or screen.verbose
    screen.show(optimization_tables(report, timings=timings, details=screen.verbose))


def tell_of_kernel(screen: Screen) -> None:
    """Say that the fused operator has no kernel here, and how to get it."""
    from mla_opt.errors import KernelUnavailableError
    from mla_opt.kernels import kernel_library

    try:
        kernel_library()
    except KernelUnavailableError as error:
        screen.say(
            "note: here the model runs by the function bodies in it, which give the same results"
            f" and take longer, because {error}"
        )
