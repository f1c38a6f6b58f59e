"""``mla-opt report``: what was found, decided and proved, as one page for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mla_opt.cli._console import Screen
from mla_opt.cli._exit import exit_on_error
from mla_opt.cli._options import Batch, Context, Model, Query, Quiet, Verbose, check_workload
from mla_opt.cli.inspect import look, require

if TYPE_CHECKING:
    from mla_opt.cost_model import Workload
    from mla_opt.report import InspectionReport, ModelFile, OptimizationReport


def report(
    model: Model,
    optimized: Annotated[
        Path | None,
        typer.Argument(metavar="[OPTIMIZED]", help="What mla-opt optimize made of it."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE.html", help="[default: MODEL-stem.report.html]"
        ),
    ] = None,
    from_report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.json",
            help="The report that optimize wrote of it: certificates, verification, controls.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    batch: Batch = 1,
    query: Query = 1,
    context: Context = 8192,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a page that shows every attention of MODEL, its costs, and the proof of OPTIMIZED.

    The page is one file that fetches nothing. It is written even if nothing matched, and then says
    why; the exit code is 3 all the same. Needs jinja2.
    """
    check_workload(query, context)
    with exit_on_error(verbose=verbose):
        from mla_opt.cost_model import Workload

        screen = Screen(quiet=quiet, verbose=verbose)
        target = output or model.with_name(f"{model.stem}.report.html")
        found = _write(
            target, model, optimized, from_report, Workload(batch, query, context), force, screen
        )
        require(found)


def _write(
    target: Path,
    model: Path,
    optimized: Path | None,
    from_report: Path | None,
    workload: Workload,
    force: bool,
    screen: Screen,
) -> InspectionReport:
    """Look at everything, and write the page; returns what was found in ``model``.

    Raises:
        InputError: a file cannot be used, or the files do not belong together.
    """
    from mla_opt.cli._recorded import read_report
    from mla_opt.files.model_io import check_output, write_text
    from mla_opt.report.page import page_data, render, require_jinja
    from mla_opt.report.units import quantity

    require_jinja()
    inputs = [path for path in (model, optimized, from_report) if path is not None]
    check_output(target, force=force, inputs=inputs)
    recorded = None if from_report is None else read_report(from_report)
    before = look(model, workload, screen, hashed=True)
    after = None if optimized is None else look(optimized, workload, screen, hashed=True)
    _check_together(before, after, recorded, from_report)
    page = render(page_data(before, after, recorded, workload=workload))
    write_text(target, page, force=force)
    screen.say(f"wrote {target} ({quantity(target.stat().st_size, 'B')})")
    return before


def _check_together(
    before: InspectionReport,
    after: InspectionReport | None,
    recorded: OptimizationReport | None,
    path: Path | None,
) -> None:
    """Check that a page would not tell of one model what is true of another.

    Raises:
        InputError: it would.
    """
    from mla_opt.errors import InputError

    if after is not None:
        _check_pair(before, after)
    if recorded is None:
        return
    if recorded.input is None:
        raise InputError(f"{path}: does not say which model it is about")
    _check_same(path, recorded.input, before.model)
    if after is None:
        return
    if recorded.output is None:
        raise InputError(f"{path}: is of a run that wrote nothing; leave OPTIMIZED out")
    _check_same(path, recorded.output, after.model)


def _check_pair(before: InspectionReport, after: InspectionReport) -> None:
    from mla_opt.errors import InputError

    name = "the second model" if after.model is None else after.model.path
    if not after.operators:
        raise InputError(f"{name}: has no attention that mla-opt optimized")
    common = {each.name for each in before.matched} & {each.name for each in after.operators}
    if not common:
        raise InputError(f"{name}: none of its attentions is one of MODEL, by name")


def _check_same(path: Path | None, told: ModelFile, found: ModelFile | None) -> None:
    from mla_opt.errors import InputError

    if found is not None and told.sha256 != found.sha256:
        raise InputError(
            f"{path}: is about another file than {found.path}: its SHA-256 is {told.sha256}, that"
            f" of the file is {found.sha256}"
        )
