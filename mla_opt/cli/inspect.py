"""``mla-opt inspect``: what a model's attention is, and what each form of it would cost."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._models import read
from mla_opt.cli._options import Batch, Context, Model, Query, Quiet, Verbose, check_workload

if TYPE_CHECKING:
    from mla_opt.cost_model import Workload
    from mla_opt.report import InspectionReport


def inspect(
    model: Model,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    batch: Batch = 1,
    query: Query = 1,
    context: Context = 8192,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show every attention of MODEL: matched or not and why, and what each form would cost."""
    check_workload(query, context)
    with exit_on_error(verbose=verbose):
        from mla_opt.cost_model import Workload

        screen = Screen(quiet=quiet, verbose=verbose)
        report = look(model, Workload(batch, query, context), screen, hashed=json)
        if json:
            sys.stdout.write(report.to_json())
        else:
            show(report, screen)
        require(report)


def require(report: InspectionReport) -> None:
    """Check that there is a latent attention, rewritten already or not.

    Raises:
        NothingMatchedError: there is none.
    """
    from mla_opt.errors import NothingMatchedError, nothing_matched

    if not report.matched and not report.operators:
        raise NothingMatchedError(nothing_matched(report.refusals))


def look(model: Path, workload: Workload, screen: Screen, *, hashed: bool) -> InspectionReport:
    """Read and inspect ``model``; ``hashed`` adds what identifies the file.

    Raises:
        InputError: the file cannot be used.
    """
    from mla_opt import api
    from mla_opt.report import with_costs

    with screen.activity(f"reading {model}") as activity:
        opened = read(model)
        activity.step("looking for attention")
        report = with_costs(api.inspect(opened.model), workload)
        report = replace(report, notes=(*report.notes, *opened.notes()))
        if hashed:
            activity.step("hashing")
            report = replace(report, model=opened.describe())
    return report


def show(report: InspectionReport, screen: Screen) -> None:
    """Print the report as tables."""
    from mla_opt.report.terminal import inspection_tables

    screen.show(inspection_tables(report, details=screen.verbose))
